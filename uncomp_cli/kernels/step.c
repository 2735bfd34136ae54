// One decode step of a few rows: a program of products, norms, rotations and attention over ragged heads.
//
//     product     y = scale (W x + b), 16 rows of W at a time, weights as they are stored, sums in float32 (blocks.h: of
//                 whole numbers); W is read once for all rows
//     attention   of a head's H/G queries of each row over that head's entries, in blocks with a running maximum (online
//                 softmax): the threads share all heads' entries evenly, whatever the lengths, and an entry is read by
//                 one of them for all rows; MERGE joins what they found
//
// Small work (norms, rotations, sums) every thread does for itself, which is cheaper than to wait for another. This file
// is compiled once for each set of instructions; LEVEL names it.
#include "blocks.h"

#define NAMED_(name, level) uncomp_##name##_##level
#define NAMED(name, level) NAMED_(name, level)

enum { ROWS = 4, BLOCK = 64, MOST_ROWS = 16, MANY = 4, FAR = 4096 };  // FAR: bytes that are fetched ahead
static const float LEAST = -1e30f;

static const int64_t SIZES[] = {4, 2, 2};

INLINE lanes take(const uint8_t *from, int kind, int64_t at) {
    if (kind == FLOAT16) return load_half((const uint16_t *)from + at);
    if (kind == BFLOAT16) return load_brain((const uint16_t *)from + at);
    return load((const float *)from + at);
}

INLINE float take_one(const uint8_t *from, int kind, int64_t at) {
    if (kind == FLOAT16) return from_half(((const uint16_t *)from)[at]);
    if (kind == BFLOAT16) return from_brain(((const uint16_t *)from)[at]);
    return ((const float *)from)[at];
}

// y[r][i] = rows[i] · x[r] for four rows of a matrix; the same places of the four that lie behind them are fetched
// meanwhile.
INLINE void some_dots(const uint8_t *const rows[ROWS], int kind, int64_t cols, int64_t ahead, const void *const *x, int count,
                      float (*y)[ROWS]) {
    lanes sums[MANY][ROWS];
    int64_t i = 0, size = SIZES[kind];
    UNROLLED
    for (int r = 0; r < count; r++) {
        UNROLLED
        for (int k = 0; k < ROWS; k++) sums[r][k] = all(0);
    }
    for (; i + LANES <= cols; i += LANES) {
        if (i * size % 64 == 0) {
            for (int k = 0; k < ROWS; k++) __builtin_prefetch(rows[k] + i * size + ahead);
        }
        lanes taken[ROWS];
        UNROLLED
        for (int k = 0; k < ROWS; k++) taken[k] = take(rows[k], kind, i);
        UNROLLED
        for (int r = 0; r < count; r++) {
            lanes v = load((const float *)x[r] + i);
            UNROLLED
            for (int k = 0; k < ROWS; k++) {
                sums[r][k] = count > 1 ? folded(taken[k], v, sums[r][k]) : fma_of(taken[k], v, sums[r][k]);
            }
        }
    }
    UNROLLED
    for (int r = 0; r < count; r++) four_sums(sums[r][0], sums[r][1], sums[r][2], sums[r][3], y[r]);
    for (int r = 0; i < cols && r < count; r++) {
        for (int k = 0; k < ROWS; k++) {
            for (int64_t j = i; j < cols; j++) y[r][k] += take_one(rows[k], kind, j) * ((const float *)x[r])[j];
        }
    }
}

INLINE void four_dots(const uint8_t *const rows[ROWS], int kind, int64_t cols, int64_t ahead, const void *const *x, int count,
                      float y[MANY][ROWS]) {
    int some = count * ROWS <= 2 * ROOM ? count : 2;
    some_dots(rows, kind, cols, ahead, x, some, y);
    if (some < count) some_dots(rows, kind, cols, ahead, x + some, count - some, y + some);
}

// y[r][first..last) = matrix · x[r]; of the last rows, where fewer than four are left, some are taken twice.
INLINE void dots_of(const uint8_t *matrix, int kind, int64_t cols, const void *const *x, int count, int64_t first,
                    int64_t last, float *const *y) {
    int64_t size = cols * SIZES[kind];
    for (int64_t row = first; row < last; row += ROWS) {
        const uint8_t *rows[ROWS];
        float found[MANY][ROWS];
        for (int k = 0; k < ROWS; k++) rows[k] = matrix + (row + k < last ? row + k : last - 1) * size;
        four_dots(rows, kind, cols, ROWS * size < FAR ? FAR : ROWS * size, x, count, found);
        for (int r = 0; r < count; r++) {
            for (int k = 0; k < ROWS && row + k < last; k++) y[r][row + k] = found[r][k];
        }
    }
}

// What is made for each count of rows up to MANY by itself, and for each way of storing numbers.
#define EACH_COUNT(name, kind)         \
    switch (count) {                   \
        case 1: name(kind, 1); break;  \
        case 2: name(kind, 2); break;  \
        case 3: name(kind, 3); break;  \
        default: name(kind, MANY);     \
    }
#define EACH_NUMBER(name)                           \
    if (kind == FLOAT16) EACH_COUNT(name, FLOAT16)   \
    else if (kind == BFLOAT16) EACH_COUNT(name, BFLOAT16) \
    else EACH_COUNT(name, FLOAT32)

#define NUMBER_DOTS(of, many) dots_of(matrix, of, cols, x, many, first, last, y)
static void number_dots(const void *matrix, int64_t kind, int64_t cols, const void *const *x, int count, int64_t first,
                        int64_t last, float *const *y) {
    EACH_NUMBER(NUMBER_DOTS)
}

// The rows [first, last) of a matrix times `count` rows. Of weights in blocks these are narrowed, and `first` begins a
// tile. Some rows at a time, which lie near enough to be read again.
static void dots(const void *matrix, int64_t kind, int64_t cols, const void *const *x, int64_t count, int64_t first,
                 int64_t last, float *const *y) {
    int64_t most = kind > BFLOAT16 ? GROUP : MANY, strip = count > most ? 4 * LANES : last - first;
    for (int64_t row = first; row < last; row += strip) {
        int64_t end = row + strip < last ? row + strip : last;
        for (int64_t r = 0; r < count; r += most) {
            int some = (int)(count - r < most ? count - r : most);
            if (kind > BFLOAT16) block_dots(matrix, kind, cols, x + r, some, row, end, y + r);
            else number_dots(matrix, kind, cols, x + r, some, row, end, y + r);
        }
    }
}

// A thread's share [from, to) of `count` pieces.
INLINE int64_t share(int64_t count, int64_t thread, int64_t threads) { return count * thread / threads; }

INLINE lanes gated(lanes gate, int64_t kind) {
    if (kind == SILU) return over(gate, add(all(1), exponential(sub(all(0), gate))));
    // gelu by tanh: x / (1 + e^(-2u)), u = sqrt(2 / pi) (x + 0.044715 x^3)
    lanes cube = mul(mul(gate, gate), gate);
    lanes u = mul(all(0.7978845608f), fma_of(all(0.044715f), cube, gate));
    return over(gate, add(all(1), exponential(mul(all(-2), u))));
}

INLINE void add_bias(float *y, const float *bias, int64_t first, int64_t count) {
    for (int64_t i = 0; bias && i < count; i++) y[i] += bias[first + i];
}

// A row as a matrix of this kind wants it.
static const void *ready(const float *x, int64_t kind, int64_t cols, float *scratch) {
    if (kind <= BFLOAT16) return x;
    narrow(x, cols, kind, scratch);
    return scratch;
}

static void multiply(const operation *op, const void *const *x, float *const *y, int64_t count, int thread, int threads) {
    int64_t units = (op->rows + LANES - 1) / LANES;
    int64_t first = share(units, thread, threads) * LANES, end = share(units, thread + 1, threads) * LANES;
    int64_t last = end < op->rows ? end : op->rows;
    dots(op->weight, op->kind, op->cols, x, count, first, last, y);
    float scale = (float)op->scale;
    for (int64_t r = 0; r < count; r++) {
        add_bias(y[r] + first, op->bias, first, last - first);
        for (int64_t i = first; scale != 1.0f && i < last; i++) y[r][i] *= scale;
    }
}

// y = act(W x + b) · (V x + c)
static void multiply_gated(const operation *op, const void *const *x, float *const *y, int64_t count, int thread,
                           int threads) {
    int64_t units = (op->rows + LANES - 1) / LANES;
    for (int64_t unit = share(units, thread, threads); unit < share(units, thread + 1, threads); unit++) {
        int64_t first = unit * LANES, last = first + LANES < op->rows ? first + LANES : op->rows;
        float gates[MOST_ROWS][LANES], ups[MOST_ROWS][LANES];
        float *gate[MOST_ROWS], *up[MOST_ROWS];
        for (int64_t r = 0; r < count; r++) gate[r] = gates[r] - first, up[r] = ups[r] - first;
        dots(op->weight, op->kind, op->cols, x, count, first, last, gate);
        dots(op->second, op->kind, op->cols, x, count, first, last, up);
        for (int64_t r = 0; r < count; r++) {
            add_bias(gates[r], op->bias, first, last - first);
            add_bias(ups[r], op->second_bias, first, last - first);
            store(gates[r], mul(gated(load(gates[r]), op->gate), load(ups[r])));
            memcpy(y[r] + first, gates[r], (size_t)(last - first) * sizeof(float));
        }
    }
}

static void embed(const operation *op, int64_t token, float *y) {
    if (op->kind > BFLOAT16) {
        unpack_rows(op->weight, op->kind, op->cols, token, 1, y);
    } else {
        const uint8_t *row = (const uint8_t *)op->weight + token * op->cols * SIZES[op->kind];
        for (int64_t i = 0; i < op->cols; i++) y[i] = take_one(row, (int)op->kind, i);
    }
    float scale = (float)op->scale;
    for (int64_t i = 0; scale != 1.0f && i < op->cols; i++) y[i] *= scale;
}

// y = w x / sqrt(mean(x^2) + eps), a row
static void normalise(const float *x, const float *weight, int64_t cols, double eps, float *y) {
    lanes squares = all(0);
    int64_t i = 0;
    for (; i + LANES <= cols; i += LANES) squares = fma_of(load(x + i), load(x + i), squares);
    float total = sum(squares);
    for (; i < cols; i++) total += x[i] * x[i];
    float inverse = 1.0f / __builtin_sqrtf(total / (float)cols + (float)eps);
    for (i = 0; i < cols; i++) y[i] = weight[i] * (x[i] * inverse);
}

static void add_to(const operation *op, const float *x, float *y) {
    float scale = (float)op->scale;
    for (int64_t i = 0; i < op->cols; i++) y[i] += scale * x[i];
}

// RoPE of one head in halves: (a, b) → (a cos - b sin, b cos + a sin); what is not turned is copied. y may be x.
static void turn(const float *x, const operation *op, const float *turns, float *y) {
    int64_t half = op->turns < 0 ? 0 : op->turned / 2;
    const float *cosines = turns + op->turns * 2 * op->turned, *sines = cosines + op->turned;
    for (int64_t i = 0; i < half; i++) {
        float a = x[i], b = x[half + i];
        y[i] = a * cosines[i] - b * sines[i];
        y[half + i] = b * cosines[half + i] + a * sines[half + i];
    }
    for (int64_t i = 2 * half; i < op->width; i++) y[i] = x[i];
}

// Queries or keys [heads, width] as attention wants them: normalised where the family does, and turned.
static void prepare(const operation *op, const float *x, int64_t heads, const float *norm, const float *turns, float *y) {
    int64_t total = heads * op->width, wide = op->norm_width ? op->norm_width : total;
    const float *from = x;
    if (norm) {
        for (int64_t at = 0; at < total; at += wide) normalise(x + at, norm, wide, op->eps, y + at);
        from = y;
    }
    for (int64_t at = 0; at < total; at += op->width) turn(from + at, op, turns, y + at);
}

// o[r] ← keep[r] o[r] + Σ_j p[r][j] values[j], `wide` vectors of a row at a time
INLINE void weigh_some(const uint8_t *values, int kind, int64_t count, int64_t width, int64_t i, int wide,
                       const float (*p)[BLOCK], const float *keep, float *const *o, int many) {
    lanes sums[MANY][4];
    UNROLLED
    for (int r = 0; r < many; r++) {
        UNROLLED
        for (int k = 0; k < wide; k++) sums[r][k] = mul(all(keep[r]), load(o[r] + i + k * LANES));
    }
    for (int64_t j = 0; j < count; j++) {
        const uint8_t *row = values + (j * width + i) * SIZES[kind];
        for (int64_t at = 0; at < wide * LANES * SIZES[kind]; at += 64) __builtin_prefetch(row + FAR + at);
        lanes taken[4];
        UNROLLED
        for (int k = 0; k < wide; k++) taken[k] = take(row, kind, k * LANES);
        UNROLLED
        for (int r = 0; r < many; r++) {
            UNROLLED
            for (int k = 0; k < wide; k++) sums[r][k] = fma_of(all(p[r][j]), taken[k], sums[r][k]);
        }
    }
    UNROLLED
    for (int r = 0; r < many; r++) {
        UNROLLED
        for (int k = 0; k < wide; k++) store(o[r] + i + k * LANES, sums[r][k]);
    }
}

INLINE void weigh_of(const uint8_t *values, int kind, int64_t count, int64_t width, const float (*p)[BLOCK],
                     const float *keep, float *const *o, int many) {
    int64_t i = 0;
    int wide = ROOM / many < 4 ? ROOM / many : 4;
    for (; i + wide * LANES <= width; i += wide * LANES) weigh_some(values, kind, count, width, i, wide, p, keep, o, many);
    for (; i + LANES <= width; i += LANES) weigh_some(values, kind, count, width, i, 1, p, keep, o, many);
    for (; i < width; i++) {
        for (int r = 0; r < many; r++) {
            float a = keep[r] * o[r][i];
            for (int64_t j = 0; j < count; j++) a += p[r][j] * take_one(values + j * width * SIZES[kind], kind, i);
            o[r][i] = a;
        }
    }
}

#define WEIGH(of, many) weigh_of(values, of, entries, width, p, keep, o, many)
static void weigh(const uint8_t *values, int64_t kind, int64_t entries, int64_t width, const float (*p)[BLOCK],
                  const float *keep, float *const *o, int count) {
    EACH_NUMBER(WEIGH)
}

// Scores [BLOCK] become the shares of a softmax up to the factor e^(-largest so far), which is kept in found[0] and the
// sum of shares in found[1]; returns by what the output so far shrinks. Padding adds 16 e^-87 at most.
static float soften(float *scores, int64_t count, float scale, float *found) {
    for (int64_t i = count; i % LANES; i++) scores[i] = LEAST;
    lanes best = all(LEAST), s = all(scale);
    for (int64_t i = 0; i < count; i += LANES) best = larger(best, mul(s, load(scores + i)));
    float before = found[0], now = largest(best);
    now = now > before ? now : before;
    lanes total = all(0);
    for (int64_t i = 0; i < count; i += LANES) {
        lanes part = exponential(sub(mul(s, load(scores + i)), all(now)));
        store(scores + i, part);
        total = add(total, part);
    }
    float shrunk[LANES];
    store(shrunk, exponential(all(before - now)));
    float keep = before <= LEAST ? 0.0f : shrunk[0];
    found[0] = now;
    found[1] = found[1] * keep + sum(total);
    return keep;
}

// Queries that look at the same entries, and what each has found: [width + BESIDE].
typedef struct {
    const void *queries[MANY];
    float *found[MANY];
    int count;
} looks;

// The queries over at most BLOCK entries.
static void attend_block(const operation *op, looks *all_of, const uint8_t *keys, const uint8_t *values, int64_t kind,
                         int64_t entries, float (*scores)[BLOCK]) {
    float keep[MANY], *at[MANY];
    for (int i = 0; i < all_of->count; i++) at[i] = scores[i];
    number_dots(keys, kind, op->width, all_of->queries, all_of->count, 0, entries, at);
    for (int i = 0; i < all_of->count; i++) {
        keep[i] = soften(scores[i], entries, (float)op->scale, all_of->found[i] + op->width);
    }
    weigh(values, kind, entries, op->width, (const float (*)[BLOCK])scores, keep, all_of->found, all_of->count);
    all_of->count = 0;
}

// An entry's codes: bytes, or halves of them, the later channels in the upper bits; of 5 bits, bits of more bytes too.
static void codes_of(const uint8_t *codes, int64_t bits, int64_t entry, int64_t width, float *y) {
    int64_t half = (width + 1) / 2, eighth = (width + 7) / 8;
    const uint8_t *row = codes + entry * (bits == 8 ? width : bits == 5 ? half + eighth : half);
    for (int64_t i = 0; i < (bits == 8 ? width : half); i++) y[i] = bits == 8 ? row[i] : row[i] & 15;
    for (int64_t i = 0; bits != 8 && i < width - half; i++) y[half + i] = row[i] >> 4;
    for (int64_t j = 0; bits == 5 && j < 8; j++) {
        for (int64_t i = 0; i < eighth && j * eighth + i < width; i++) y[j * eighth + i] += (row[half + i] >> j & 1) * 16;
    }
}

// An entry's numbers in float32.
static void widen(const fewer *of, const uint8_t *codes, int64_t bits, const uint16_t *scales, const uint16_t *zeros,
                  int64_t entry, int64_t width, float *y) {
    codes_of(codes, bits, entry, width, y);
    for (int64_t g = 0; g < of->groups; g++) {
        float scale = from_half(scales[entry * of->groups + g]), zero = from_half(zeros[entry * of->groups + g]);
        int64_t end = (g + 1) * of->group < width ? (g + 1) * of->group : width;
        for (int64_t i = g * of->group; i < end; i++) y[i] = y[i] * scale + zero;
    }
}

// y = H x, with the Hadamard matrix H of the largest power of two that divides the width, block by block.
static void spread(const float *x, int64_t width, float *y) {
    int64_t size = width & -width;
    memcpy(y, x, (size_t)width * sizeof(float));
    for (int64_t half = 1; half < size; half *= 2) {
        for (int64_t i = 0; i < width; i++) {
            if (i & half) continue;
            float a = y[i], b = y[i + half];
            y[i] = a + b, y[i + half] = a - b;
        }
    }
}

INLINE void put(void *to, int64_t kind, int64_t at, const float *from, int64_t count) {
    for (int64_t i = 0; i < count; i++) {
        if (kind == FLOAT16) ((uint16_t *)to)[at + i] = to_half(from[i]);
        else if (kind == BFLOAT16) ((uint16_t *)to)[at + i] = to_brain(from[i]);
        else ((float *)to)[at + i] = from[i];
    }
}

// One head as some rows see it: entries of `cache` that were there, and one for each row where these are put behind.
typedef struct {
    const held *cache;
    int64_t head, group;
    int64_t first_row, last_row;
    int64_t before, old;  // entries that come before this cache's, and those of it that were there
    int fresh;
} sight;

// All rows' queries and keys, turned, and values [.., width]; where a thread keeps what it finds for them.
typedef struct {
    const float *queries[MOST_ROWS], *keys[MOST_ROWS], *values[MOST_ROWS];
    float *found[MOST_ROWS];
} attended;

INLINE int64_t larger_of(int64_t a, int64_t b) { return a > b ? a : b; }
INLINE int64_t smaller_of(int64_t a, int64_t b) { return a < b ? a : b; }

INLINE int64_t old_of(const held *cache, int64_t head) {
    return cache->ends[head] - cache->starts[head] + (cache->fewer ? cache->fewer[head].count : 0);
}

// What a row sees of a head: entries [*low, *high); a window is of entries.
INLINE void seen_of(const operation *op, const step *now, const sight *of, int64_t row, int64_t *low, int64_t *high) {
    int64_t strand = 0;
    while (row >= now->firsts[strand + 1]) strand++;
    int64_t behind = row - now->firsts[strand] + 1;
    int64_t own = of->fresh ? of->old : old_of(now->cache[op->layer], strand * op->groups + of->group);
    int64_t total = of->fresh ? of->before + own + behind : of->old + own + behind;
    *high = of->fresh ? of->old + behind : of->old;
    *low = op->window ? larger_of(0, smaller_of(*high, total - op->window - of->before)) : 0;
}

// The rows over `some` entries from `first` on, which lie at keys and values: four queries at a time where they see all.
static void look_at(const operation *op, const step *now, const sight *of, const attended *rows, int64_t first, int64_t some,
                    const uint8_t *keys, const uint8_t *values, int64_t kind, float (*scores)[BLOCK]) {
    int64_t per = op->heads / op->groups, width = op->width, size = width * SIZES[kind];
    looks together = {.count = 0};
    for (int64_t row = of->first_row; row < of->last_row; row++) {
        int64_t low, high;
        seen_of(op, now, of, row, &low, &high);
        int64_t begin = larger_of(low, first) - first, end = smaller_of(high, first + some) - first;
        looks alone = {.count = 0}, *in = begin == 0 && end == some ? &together : &alone;
        for (int64_t q = of->group * per, last = q + per; begin < end && q < last; q++) {
            in->queries[in->count] = rows->queries[row] + q * width;
            in->found[in->count++] = rows->found[row] + q * (width + BESIDE);
            if (in->count < MANY && (in == &together || q + 1 < last)) continue;
            attend_block(op, in, keys + begin * size, values + begin * size, kind, end - begin, scores);
        }
    }
    if (together.count) attend_block(op, &together, keys, values, kind, some, scores);
}

// The queries of the head's group as its keys in fewer bits want them, at `to`; of other groups there are none.
static void turn_queries(const operation *op, const sight *of, const attended *rows, float *to, attended *turned) {
    int64_t per = op->heads / op->groups, width = op->width, skipped = of->group * per * width;
    for (int64_t row = of->first_row; row < of->last_row; row++, to += per * width) {
        for (int64_t q = 0; q < per; q++) spread(rows->queries[row] + skipped + q * width, width, to + q * width);
        turned->queries[row] = to - skipped;
    }
}

// A head's entries [first, last), those in fewer bits counted first; `block` holds scores, BLOCK keys and values, and the
// queries of the head's group, turned.
static void look_along(const operation *op, const step *now, const sight *of, const attended *rows, int64_t first,
                       int64_t last, float *block) {
    const held *cache = of->cache;
    int64_t width = op->width, size = width * SIZES[cache->kind], before = cache->fewer ? cache->fewer[of->head].count : 0;
    float(*scores)[BLOCK] = (float(*)[BLOCK])block, *wide = block + MANY * BLOCK, *wide_values = wide + BLOCK * width;
    attended turned = *rows;
    if (first < before) turn_queries(op, of, rows, wide_values + BLOCK * width, &turned);
    while (first < last) {
        int64_t end = first < before && last > before ? before : first < of->old && last > of->old ? of->old : last;
        int64_t some = smaller_of(end - first, BLOCK);
        if (first < before) {
            const fewer *in = cache->fewer + of->head;
            for (int64_t i = 0; i < some; i++) {
                widen(in, in->key_codes, in->key_bits, in->key_scales, in->key_zeros, first + i, width, wide + i * width);
                widen(in, in->value_codes, in->value_bits, in->value_scales, in->value_zeros, first + i, width,
                      wide_values + i * width);
            }
            look_at(op, now, of, &turned, first, some, (uint8_t *)wide, (uint8_t *)wide_values, FLOAT32, scores);
        } else {
            int64_t at = (cache->starts[of->head] + first - before) * size;
            look_at(op, now, of, rows, first, some, (uint8_t *)cache->keys + at, (uint8_t *)cache->values + at, cache->kind,
                    scores);
        }
        first += some;
    }
}

// The entries [first, last) of a head that are new are put there.
static void put_fresh(const operation *op, const step *now, const sight *of, const attended *rows, int64_t first,
                      int64_t last) {
    const held *cache = of->cache;
    for (int64_t entry = larger_of(first, of->old); entry < last; entry++) {
        int64_t row = of->first_row + entry - of->old, at = cache->ends[of->head] + entry - of->old;
        put(cache->keys, cache->kind, at * op->width, rows->keys[row] + of->group * op->width, op->width);
        put(cache->values, cache->kind, at * op->width, rows->values[row] + of->group * op->width, op->width);
        if (cache->positions) cache->positions[at] = (int32_t)now->positions[row];
    }
}

// The heads that are looked at, one after the other: of each group what is before all strands, and each strand's own.
INLINE int64_t sights(const step *now, int64_t groups) { return groups * (now->strands + (now->before ? 1 : 0)); }

static sight sight_at(const operation *op, const step *now, int64_t index) {
    int64_t kinds = now->strands + (now->before ? 1 : 0), group = index / kinds, strand = index % kinds;
    const held *before = now->before ? now->before[op->layer] : NULL;
    if (strand == now->strands) return (sight){before, group, group, 0, now->rows, 0, old_of(before, group), 0};
    const held *cache = now->cache[op->layer];
    int64_t head = strand * op->groups + group, earlier = before ? old_of(before, group) : 0;
    return (sight){cache, head, group, now->firsts[strand], now->firsts[strand + 1], earlier, old_of(cache, head), 1};
}

// Where the entries begin that any row sees, and where they end.
INLINE void reach(const operation *op, const step *now, const sight *of, int64_t *low, int64_t *high) {
    int64_t lowest, highest;
    seen_of(op, now, of, of->first_row, low, high);
    for (int64_t row = of->first_row + 1; row < of->last_row; row++) {
        seen_of(op, now, of, row, &lowest, &highest);
        *low = smaller_of(*low, lowest), *high = larger_of(*high, highest);
    }
}

// Each thread takes a share of what all rows see; who has a new entry puts it there first.
static void attend(const operation *op, const step *now, const attended *rows, float *block, int thread, int threads) {
    int64_t count = sights(now, op->groups), total = 0, before = 0, low, high;
    for (int64_t i = 0; i < count; i++) {
        sight of = sight_at(op, now, i);
        reach(op, now, &of, &low, &high);
        total += (high - low) * (of.last_row - of.first_row);
    }
    int64_t from = share(total, thread, threads), to = share(total, thread + 1, threads);
    for (int64_t i = 0; i < count; i++) {
        sight of = sight_at(op, now, i);
        reach(op, now, &of, &low, &high);
        int64_t lookers = of.last_row - of.first_row, all_of = (high - low) * lookers;
        int64_t a = larger_of(from - before, 0), b = smaller_of(to - before, all_of);
        before += all_of;
        if (a >= b) continue;
        a = low + (a + lookers - 1) / lookers, b = low + (b + lookers - 1) / lookers;
        if (of.fresh) put_fresh(op, now, &of, rows, a, b);
        look_along(op, now, &of, rows, a, b, block);
    }
}

// What the threads found for each head: Σ_t e^(m_t - m) o_t / Σ_t e^(m_t - m) l_t
static void merge(const operation *op, const float *found, int threads, float *y) {
    int64_t width = op->width, each = width + BESIDE;
    for (int64_t head = 0; head < op->heads; head++) {
        float best = LEAST, total = 0, *o = y + head * width;
        memset(o, 0, (size_t)width * sizeof(float));
        for (int t = 0; t < threads; t++) {
            float m = found[(t * op->heads + head) * each + width];
            best = m > best ? m : best;
        }
        for (int t = 0; t < threads; t++) {
            const float *part = found + (t * op->heads + head) * each;
            if (part[width] <= LEAST) continue;
            float weight[LANES];
            store(weight, exponential(all(part[width] - best)));
            total += weight[0] * part[width + 1];
            for (int64_t i = 0; i < width; i++) o[i] += weight[0] * part[i];
        }
        for (int64_t i = 0; i < width; i++) o[i] /= total;
    }
}

// Where a row's numbers are.
INLINE float *at(const program *p, const step *now, const operation *op, place where, int thread, int64_t row) {
    if (where.space == OUTPUT) return now->output + (row - now->from) * op->rows;
    if (where.space == SHARED) return p->shared + row * p->shared_floats + where.at;
    return p->own + (thread * p->rows + row) * p->own_floats + where.at;
}

// All rows' queries and keys as attention wants them; what a thread will find is nothing yet.
static void begin_attention(const program *p, const operation *op, const step *now, int thread, attended *rows) {
    int64_t queries = op->heads * op->width, keys = op->groups * op->width, each = op->width + BESIDE;
    for (int64_t row = 0; row < now->rows; row++) {
        const float *qkv = at(p, now, op, op->from, thread, row), *turns = now->turns + row * now->turns_floats;
        float *turned = at(p, now, op, op->scratch, thread, row);
        prepare(op, qkv, op->heads, op->query_norm, turns, turned);
        prepare(op, qkv + queries, op->groups, op->key_norm, turns, turned + queries);
        if (thread == 0) memcpy(at(p, now, op, op->kept, 0, row), turned, (size_t)queries * sizeof(float));
        rows->queries[row] = turned, rows->keys[row] = turned + queries, rows->values[row] = qkv + queries + keys;
        float *found = rows->found[row] = at(p, now, op, op->to, thread, row) + thread * op->heads * each;
        memset(found, 0, (size_t)(op->heads * each) * sizeof(float));
        for (int64_t head = 0; head < op->heads; head++) found[head * each + op->width] = LEAST;
    }
}

static void run_product(const program *p, const operation *op, const step *now, int thread, int threads) {
    const void *x[MOST_ROWS];
    float *y[MOST_ROWS];
    int64_t from = op->to.space == OUTPUT ? now->from : 0, count = now->rows - from;
    for (int64_t r = 0; r < count; r++) {
        float *scratch = at(p, now, op, op->scratch, thread, from + r);
        const float *given = at(p, now, op, op->from, thread, from + r);
        x[r] = op->narrow || op->kind <= BFLOAT16 ? ready(given, op->kind, op->cols, scratch) : scratch;
        y[r] = at(p, now, op, op->to, thread, from + r);
    }
    if (op->code == GATED) multiply_gated(op, x, y, count, thread, threads);
    else multiply(op, x, y, count, thread, threads);
}

// What every thread does for itself, for one row.
static void run_row(const program *p, const operation *op, const step *now, int thread, int threads, int64_t row) {
    const float *from = at(p, now, op, op->from, thread, row);
    float *to = at(p, now, op, op->to, thread, row);
    switch (op->code) {
        case EMBED: embed(op, now->tokens[row], to); break;
        case NORM: normalise(from, op->weight, op->cols, op->eps, to); break;
        case ADD: add_to(op, from, to); break;
        case MERGE: merge(op, from, threads, to); break;
    }
}

void NAMED(execute, LEVEL)(const program *p, const step *now, int thread, int threads, meeting *here);
void NAMED(execute, LEVEL)(const program *p, const step *now, int thread, int threads, meeting *here) {
    attended rows;
    for (int64_t i = 0; i < p->count; i++) {
        const operation *op = p->operations + i;
        if (op->code == PRODUCT || op->code == GATED) {
            run_product(p, op, now, thread, threads);
        } else if (op->code == ATTEND) {
            begin_attention(p, op, now, thread, &rows);
            attend(op, now, &rows, p->blocks + thread * p->block_floats, thread, threads);
        } else {
            for (int64_t row = 0; row < now->rows; row++) run_row(p, op, now, thread, threads, row);
        }
        if (op->wait) uncomp_meet(here);
    }
}

void NAMED(multiply, LEVEL)(const product *p, int thread, int threads);
void NAMED(multiply, LEVEL)(const product *p, int thread, int threads) {
    int64_t units = (p->rows + LANES - 1) / LANES;
    int64_t begin = share(units, thread, threads), end = share(units, thread + 1, threads);
    float *scratch = p->scratch + thread * p->scratch_floats;
    int64_t each = p->kind > BFLOAT16 ? narrow_floats(p->cols) : 0;
    const void *x[MOST_ROWS];
    float *y[MOST_ROWS];
    for (int64_t row = 0; row < p->count; row++) {
        x[row] = ready(p->input + row * p->cols, p->kind, p->cols, scratch + row * each);
        y[row] = p->output + row * p->rows;
    }
    dots(p->weight, p->kind, p->cols, x, p->count, begin * LANES, smaller_of(end * LANES, p->rows), y);
}

// A file's blocks → tiles; below, tiles → numbers [rows, cols], of all rows or of those that are picked.
void NAMED(pack, LEVEL)(const layout_change *c, int thread, int threads);
void NAMED(pack, LEVEL)(const layout_change *c, int thread, int threads) {
    const layout *of = &LAYOUTS[c->kind];
    int64_t units = (c->rows + LANES - 1) / LANES, row_blocks = c->cols / of->span;
    for (int64_t unit = share(units, thread, threads); unit < share(units, thread + 1, threads); unit++) {
        int64_t first = unit * LANES, some = c->rows - first < LANES ? c->rows - first : LANES;
        for (int64_t b = 0; b < row_blocks; b++) {
            const uint8_t *block = (const uint8_t *)c->source + (first * row_blocks + b) * of->bytes;
            uint8_t *tile = (uint8_t *)c->target + (unit * row_blocks + b) * tile_bytes(of);
            pack_tile(block, c->kind, some, row_blocks * of->bytes, tile);
        }
    }
}

void NAMED(unpack, LEVEL)(const layout_change *c, int thread, int threads);
void NAMED(unpack, LEVEL)(const layout_change *c, int thread, int threads) {
    int64_t each = c->picked ? 1 : LANES, units = (c->rows + each - 1) / each;
    for (int64_t unit = share(units, thread, threads); unit < share(units, thread + 1, threads); unit++) {
        int64_t row = unit * each, some = c->rows - row < each ? c->rows - row : each;
        float *y = (float *)c->target + row * c->cols;
        unpack_rows(c->source, c->kind, c->cols, c->picked ? c->picked[row] : row, some, y);
    }
}
