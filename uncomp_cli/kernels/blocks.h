// Weights in a GGUF's own blocks: a scale d, perhaps a minimum m, and whole codes c,
//
//     of 32 columns    Q8_0  d c    Q4_0  d (c - 8)    Q4_1  d c + m    Q5_0  d (c - 16)    Q5_1  d c + m
//     of 256           Q4_K, Q5_K  d a c - m b, with whole a, b for each 32      Q6_K  d a (c - 32), a for each 16
//
// laid out in tiles of 16 rows by 32 or 256 columns, so that a lane is a row: 16 scales, 16 minimums, then for each 32
// columns a and b of the rows, the bits above the fourth, one plane after the other, and the codes, four bytes of each row
// in turn. Nothing is rounded; a and b of 6 bits take 8, all else as many bytes as in the file. A row of activations
// becomes 16-bit integers with a scale for each 32: a product is then of exact whole numbers,
//
//     y = Σ_32 d a s Σ (c - offset) q + m s Σ q,      x ≈ s q,  |x - s q| ≤ max|x| / 65534.
#ifndef UNCOMP_BLOCKS_H
#define UNCOMP_BLOCKS_H

#include "step.h"
#include "whole.h"

enum { COLS = 32, PAIRS = 16, GROUP = 4 };  // GROUP: rows that meet a code at once

#define UNROLLED _Pragma("GCC unroll 16")

typedef struct {
    int span, bytes;  // of a block of the file
    int minimum;      // whether it has one
    int above;        // bits of a code above the fourth
    int wide;         // whether codes are whole bytes, with a sign
    int offset;       // what is taken from a code
    int inner;        // bytes of a and b for 32 columns of a row
} layout;

static const layout LAYOUTS[] = {
    [Q8_0] = {32, 34, 0, 0, 1, 0, 0},   [Q4_0] = {32, 18, 0, 0, 0, 8, 0},   [Q4_1] = {32, 20, 1, 0, 0, 0, 0},
    [Q5_0] = {32, 22, 0, 1, 0, 16, 0},  [Q5_1] = {32, 24, 1, 1, 0, 0, 0},   [Q4_K] = {256, 144, 1, 0, 0, 0, 2},
    [Q5_K] = {256, 176, 1, 1, 0, 0, 2}, [Q6_K] = {256, 210, 0, 2, 0, 32, 2},
};

INLINE int64_t head_bytes(const layout *of) { return 32 + 32 * of->minimum; }
INLINE int64_t part_bytes(const layout *of) { return LANES * of->inner + 64 * of->above + (of->wide ? 512 : 256); }
INLINE int64_t tile_bytes(const layout *of) { return head_bytes(of) + of->span / COLS * part_bytes(of); }

// The columns that the two numbers of a lane are of: vector v of the codes, part p of it. Of half-bytes the parts 0 and 2
// are in the first sixteen columns.
INLINE int column(int wide, int v, int p, int second) {
    return wide ? 4 * v + p + 2 * second : 4 * v + (p >> 1) + 16 * (p & 1) + 2 * second;
}

typedef struct {
    float scale, sum;      // of 32 columns, and scale times the sum of their numbers
    int32_t first, later;  // sums of the whole numbers of the first sixteen, and of the others
} narrowed;

INLINE int64_t narrow_floats(int64_t cols) { return cols / 2 + cols / COLS * (int64_t)(sizeof(narrowed) / sizeof(float)); }

// 32 activations as integers in the order in which codes of a layout meet them, and their scale.
INLINE narrowed narrow_some(const float *x, int wide, int16_t *q) {
    lanes low = load(x), high = load(x + LANES), zero = all(0);
    float most = largest(larger(larger(low, sub(zero, low)), larger(high, sub(zero, high))));
    lanes inverse = all(most > 1e-30f ? 32767 / most : 0);
    low = rounded(mul(low, inverse)), high = rounded(mul(high, inverse));
    float whole[COLS], scale = most / 32767, first = sum(low), later = sum(high);  // exact: below 2^24
    store(whole, low), store(whole + LANES, high);
    UNROLLED
    for (int at = 0; at < PAIRS; at++) {
        int parts = wide ? 2 : 4, v = at / parts, p = at % parts;
        q[2 * at] = (int16_t)whole[column(wide, v, p, 0)], q[2 * at + 1] = (int16_t)whole[column(wide, v, p, 1)];
    }
    return (narrowed){scale, scale * (first + later), (int32_t)first, (int32_t)later};
}

// A row of activations [cols], and behind its integers the scales.
static void narrow(const float *x, int64_t cols, int64_t kind, void *to) {
    int16_t *q = to;
    narrowed *scales = (narrowed *)(q + cols);
    for (int64_t at = 0; at < cols; at += COLS) {
        *scales++ = LAYOUTS[kind].wide ? narrow_some(x + at, 1, q + at) : narrow_some(x + at, 0, q + at);
    }
}

INLINE uint32_t mask_at(const uint8_t *p) {
    uint32_t mask;
    memcpy(&mask, p, sizeof mask);
    return mask;
}

// Part p of vector v of the codes: two numbers of each row.
INLINE shorts code_of(shorts x, const layout *of, const uint8_t *codes, int v, int p) {
    if (of->wide) return signed_byte(x, p);
    shorts c = nibble(x, p);
    for (int bit = 0; bit < of->above; bit++) {
        c = raised(c, mask_at(codes - 64 * (of->above - bit) + 16 * v + 4 * p), 16 << bit);
    }
    return c;
}

// What 32 columns of a part add to a row's product and to its minimums: `first` is of the first sixteen columns, where
// these have a scale of their own, else of all.
INLINE void add_part(int kind, const uint8_t *part, lanes d, lanes m, longs first, longs later, narrowed s, lanes *sums,
                     lanes *minimums) {
    const layout *of = &LAYOUTS[kind];
    lanes scale = mul(d, all(s.scale));
    if (kind == Q6_K) {
        lanes low = mul(as_lanes(minus(first, of->offset * s.first)), load_bytes(part, 1));
        lanes high = mul(as_lanes(minus(later, of->offset * s.later)), load_bytes(part + LANES, 1));
        *sums = fma_of(scale, add(low, high), *sums);
        return;
    }
    if (of->inner) scale = mul(scale, load_bytes(part, 0));
    *sums = fma_of(scale, as_lanes(of->offset ? minus(first, of->offset * (s.first + s.later)) : first), *sums);
    if (of->inner) *minimums = fma_of(mul(m, load_bytes(part + LANES, 0)), all(-s.sum), *minimums);
    else if (of->minimum) *minimums = fma_of(m, all(s.sum), *minimums);
}

// The codes `at`, `at` + `by`, … of 32 columns times `count` rows of whole numbers. A code is taken apart once for all
// rows and meets them at once, so that it and all sums stay in registers.
INLINE void part_dots(const layout *of, const uint8_t *codes, int at, int by, const int16_t *const *q, int count, longs *sums) {
    int parts = of->wide ? 2 : 4;
    for (int r = 0; r < count; r++) sums[r] = nothing();
    UNROLLED
    for (; at < PAIRS; at += by) {
        shorts taken = code_of(load_shorts(codes + 64 * (at / parts)), of, codes, at / parts, at % parts);
        for (int r = 0; r < count; r++) sums[r] = with_pairs(sums[r], taken, pair_at(q[r] + 2 * at));
    }
}

// Sixteen rows of a matrix, whose tiles follow each other, times `count` narrowed rows, GROUP at most. Of Q6_K's codes the
// even ones are in the first sixteen columns.
INLINE void tile_dots(const uint8_t *tile, int kind, int64_t cols, const void *const *x, int count, lanes *sums) {
    const layout *of = &LAYOUTS[kind];
    lanes minimums[GROUP];
    for (int r = 0; r < count; r++) sums[r] = minimums[r] = all(0);
    for (int64_t col = 0; col < cols; tile += tile_bytes(of)) {
        lanes d = load_half((const uint16_t *)tile), m = of->minimum ? load_half((const uint16_t *)(tile + 32)) : all(0);
        const uint8_t *part = tile + head_bytes(of);
        for (int i = 0; i < of->span / COLS; i++, part += part_bytes(of), col += COLS) {
            for (int64_t at = 0; at < part_bytes(of); at += 64) __builtin_prefetch(part + 4096 + at);
            const uint8_t *codes = part + LANES * of->inner + 64 * of->above;
            const int16_t *q[GROUP];
            longs first[GROUP], later[GROUP];
            for (int r = 0; r < count; r++) q[r] = (const int16_t *)x[r] + col;
            part_dots(of, codes, 0, kind == Q6_K ? 2 : 1, q, count, first);
            if (kind == Q6_K) part_dots(of, codes, 1, 2, q, count, later);
            for (int r = 0; r < count; r++) {
                narrowed s = ((const narrowed *)((const int16_t *)x[r] + cols))[col / COLS];
                add_part(kind, part, d, m, first[r], later[r], s, sums + r, minimums + r);
            }
        }
    }
    for (int r = 0; r < count; r++) sums[r] = add(sums[r], minimums[r]);
}

// y[r][first..last) = tiles · x[r]; `first` begins a tile.
INLINE void tiles_of(const uint8_t *tiles, int kind, int64_t cols, const void *const *x, int count, int64_t first,
                     int64_t last, float *const *y) {
    int64_t bytes = cols / LAYOUTS[kind].span * tile_bytes(&LAYOUTS[kind]);
    for (int64_t row = first; row < last; row += LANES) {
        float found[LANES];
        lanes sums[GROUP];
        int64_t some = last - row < LANES ? last - row : LANES;
        tile_dots(tiles + row / LANES * bytes, kind, cols, x, count, sums);
        for (int r = 0; r < count; r++) {
            store(found, sums[r]);
            memcpy(y[r] + row, found, (size_t)some * sizeof(float));
        }
    }
}

// What is made for each kind by itself, of functions (what they work on, kind, …).
#define EACH_KIND(name, on, ...)                      \
    switch (kind) {                                   \
        case Q8_0: name(on, Q8_0, __VA_ARGS__); break; \
        case Q4_0: name(on, Q4_0, __VA_ARGS__); break; \
        case Q4_1: name(on, Q4_1, __VA_ARGS__); break; \
        case Q5_0: name(on, Q5_0, __VA_ARGS__); break; \
        case Q5_1: name(on, Q5_1, __VA_ARGS__); break; \
        case Q4_K: name(on, Q4_K, __VA_ARGS__); break; \
        case Q5_K: name(on, Q5_K, __VA_ARGS__); break; \
        case Q6_K: name(on, Q6_K, __VA_ARGS__); break; \
    }

static void block_dots(const uint8_t *tiles, int64_t kind, int64_t cols, const void *const *x, int count, int64_t first,
                       int64_t last, float *const *y) {
    if (count == 1) EACH_KIND(tiles_of, tiles, cols, x, 1, first, last, y)
#if defined(__AVX2__)  // where sums of so many rows stay in registers if it is known how many they are
    else if (count == 2) EACH_KIND(tiles_of, tiles, cols, x, 2, first, last, y)
    else if (count == GROUP) EACH_KIND(tiles_of, tiles, cols, x, GROUP, first, last, y)
#endif
    else EACH_KIND(tiles_of, tiles, cols, x, count, first, last, y)
}

// 32 columns of a file's block as a tile has them: sixteen bytes of columns j and j + 16, or a byte for each. As ggml has
// them, Q4_K and Q5_K have 64 columns of 256 in each 32 bytes, Q6_K 128 in each 64.
INLINE void file_codes(int kind, const uint8_t *block, int i, uint8_t *codes) {
    const layout *of = &LAYOUTS[kind];
    const uint8_t *rest = block + 2 + 2 * of->minimum;
    if (of->span == COLS) {
        memcpy(codes, rest + 4 * of->above, of->wide ? 32 : 16);
        return;
    }
    const uint8_t *low = kind == Q6_K ? block + 64 * (i / 4) + 32 * (i % 2) : rest + 12 + 32 * of->above + 32 * (i / 2);
    int by = kind == Q6_K ? 4 * (i % 4 / 2) : 4 * (i % 2);
    for (int j = 0; j < 16; j++) codes[j] = (uint8_t)((low[j] >> by & 15) | (low[j + 16] >> by & 15) << 4);
}

// Bit `at` of each of 32 bytes: the product moves that of byte k from place 8 k to 56 + k, and no two into one.
INLINE uint32_t bits_at(const uint8_t *bytes, int at) {
    uint32_t found = 0;
    for (int k = 0; k < 4; k++) {
        uint64_t eight;
        memcpy(&eight, bytes + 8 * k, sizeof eight);
        eight = eight >> at & 0x0101010101010101u;
        found |= (uint32_t)(eight * 0x0102040810204080u >> 56) << (8 * k);
    }
    return found;
}

// The codes' bits above the fourth, of 32 columns.
INLINE uint32_t file_above(int kind, const uint8_t *block, int i, int bit) {
    if (kind == Q6_K) return bits_at(block + 128 + 32 * (i / 4), 2 * (i % 4) + bit);
    return kind == Q5_K ? bits_at(block + 16, i) : mask_at(block + 2 + 2 * LAYOUTS[kind].minimum);
}

// a and b of 32 columns: six bits of twelve bytes, the last four columns' upper two apart; of Q6_K a of sixteen and sixteen.
INLINE void file_inner(int kind, const uint8_t *block, int i, uint8_t *a, uint8_t *b) {
    const uint8_t *s = block + 4;
    if (kind == Q6_K) {
        *a = block[192 + 2 * i], *b = block[193 + 2 * i];
    } else if (i < 4) {
        *a = s[i] & 63, *b = s[i + 4] & 63;
    } else {
        *a = (uint8_t)((s[i + 4] & 15) | (s[i - 4] >> 6) << 4), *b = (uint8_t)(s[i + 4] >> 4 | (s[i] >> 6) << 4);
    }
}

// 32 columns of up to sixteen rows as a part's codes: four bytes of each row in turn, and each plane of bits as masks.
INLINE void put_codes(int kind, const uint8_t *blocks, int64_t rows, int64_t row, int i, uint8_t *codes) {
    const layout *of = &LAYOUTS[kind];
    uint8_t bytes[LANES][COLS] = {{0}};
    uint32_t words[LANES] = {0};
    for (int64_t r = 0; r < rows; r++) file_codes(kind, blocks + r * row, i, bytes[r]);
    for (int v = 0; v < (of->wide ? 8 : 4); v++) {
        for (int r = 0; r < LANES; r++) memcpy(codes + 64 * v + 4 * r, bytes[r] + 4 * v, 4);
    }
    for (int bit = 0; bit < of->above; bit++) {
        for (int64_t r = 0; r < rows; r++) words[r] = file_above(kind, blocks + r * row, i, bit);
        for (int at = 0; at < 16; at++) {
            uint32_t mask = 0;
            int first = column(0, at / 4, at % 4, 0);  // the other of a row's two columns is the next but one
            for (int r = 0; r < LANES; r++) mask |= ((words[r] >> first & 1) | (words[r] >> (first + 1) & 2)) << (2 * r);
            memcpy(codes - 64 * (of->above - bit) + 4 * at, &mask, sizeof mask);
        }
    }
}

// Up to sixteen rows of a file's blocks, `row` bytes from one to the next, as one tile; rows that are missing are zeros.
INLINE void pack_of(const uint8_t *blocks, int kind, int64_t rows, int64_t row, uint8_t *tile) {
    const layout *of = &LAYOUTS[kind];
    if (rows < LANES) memset(tile, 0, (size_t)tile_bytes(of));
    for (int64_t r = 0; r < rows; r++) {
        const uint8_t *block = blocks + r * row;
        memcpy(tile + 2 * r, block + (kind == Q6_K ? 208 : 0), 2);
        if (of->minimum) memcpy(tile + 32 + 2 * r, block + 2, 2);
        for (int i = 0; of->inner && i < of->span / COLS; i++) {
            uint8_t *part = tile + head_bytes(of) + i * part_bytes(of);
            file_inner(kind, block, i, part + r, part + LANES + r);
        }
    }
    for (int i = 0; i < of->span / COLS; i++) {
        put_codes(kind, blocks, rows, row, i, tile + head_bytes(of) + i * part_bytes(of) + LANES * of->inner + 64 * of->above);
    }
}

static void pack_tile(const uint8_t *blocks, int64_t kind, int64_t rows, int64_t row, uint8_t *tile) {
    EACH_KIND(pack_of, blocks, rows, row, tile)
}

// 32 columns of a tile's sixteen rows as numbers [32][16].
INLINE void numbers_of(const uint8_t *part, int kind, lanes d, lanes m, float *y) {
    const layout *of = &LAYOUTS[kind];
    const uint8_t *codes = part + LANES * of->inner + 64 * of->above;
    lanes scales[2] = {d, d};
    if (kind == Q6_K) {
        scales[0] = mul(d, load_bytes(part, 1)), scales[1] = mul(d, load_bytes(part + LANES, 1));
    } else if (of->inner) {
        scales[0] = scales[1] = mul(d, load_bytes(part, 0)), m = sub(all(0), mul(m, load_bytes(part + LANES, 0)));
    }
    for (int v = 0; v < (of->wide ? 8 : 4); v++) {
        shorts x = load_shorts(codes + 64 * v);
        for (int at = 0; at < (of->wide ? 4 : 8); at++) {
            int p = at / 2, second = at % 2, col = column(of->wide, v, p, second);
            longs whole = with_pairs(nothing(), code_of(x, of, codes, v, p), second ? 1 << 16 : 1);
            lanes product = mul(scales[col / 16], as_lanes(minus(whole, of->offset)));
            store(y + LANES * col, of->minimum ? add(product, m) : product);
        }
    }
}

// Rows r, r + 1, … of a row of tiles as numbers [rows, cols].
INLINE void unpack_of(const uint8_t *tile, int kind, int64_t cols, int64_t r, int64_t rows, float *y) {
    const layout *of = &LAYOUTS[kind];
    float found[COLS * LANES];
    for (int64_t col = 0; col < cols; tile += tile_bytes(of)) {
        lanes d = load_half((const uint16_t *)tile), m = of->minimum ? load_half((const uint16_t *)(tile + 32)) : all(0);
        for (int i = 0; i < of->span / COLS; i++, col += COLS) {
            numbers_of(tile + head_bytes(of) + i * part_bytes(of), kind, d, m, found);
            for (int64_t row = 0; row < rows; row++) {
                for (int c = 0; c < COLS; c++) y[row * cols + col + c] = found[LANES * c + r + row];
            }
        }
    }
}

// The same of a matrix in tiles, from a row on; no more than are in its tile.
static void unpack_rows(const uint8_t *tiles, int64_t kind, int64_t cols, int64_t first, int64_t rows, float *y) {
    const layout *of = &LAYOUTS[kind];
    const uint8_t *tile = tiles + first / LANES * (cols / of->span) * tile_bytes(of);
    EACH_KIND(unpack_of, tile, cols, first % LANES, rows, y)
}

#endif
