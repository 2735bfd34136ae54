// Attention of many tokens over those before them and, causally, themselves: softmax(scaling q·k) v.
//
//     for each block of ROWS_AT_ONCE tokens of a head:  for each block of KEYS_AT_ONCE entries:
//         s = q·k    m' = max(m, s)    p = e^(s - m')    l = l e^(m - m') + Σ p    o = o e^(m - m') + p·v
//
// (online softmax: Milakov and Gimelshein 2018, Dao et al. 2022). Keys and values are packed once, so that both products
// read them as panels of 4 x 16 columns that stay in a cache while tiles of 6 rows go over them; nothing is as large as
// tokens x entries. With BFLOAT16 the products are of 16-bit floats, by pairs, and their sums float32; what is a softmax's
// is float32 always. Compiled once for each set of instructions; LEVEL names it.
#include "lanes.h"
#include "step.h"

#define NAMED_(name, level) uncomp_##name##_##level
#define NAMED(name, level) NAMED_(name, level)

#if defined(__AVX512F__)
enum { WIDE = 4 };
#else
enum { WIDE = 1 };  // sixteen registers hold no more
#endif
enum { TILE = 6, ROWS_AT_ONCE = 96, KEYS_AT_ONCE = 128, PANEL = WIDE * LANES };
static const float LEAST = -1e30f;

// A unit is what a broadcast takes of a row: a number, or a pair of 16 bits.
#if defined(__AVX512BF16__)
enum { PAIRED = 2 };
typedef uint32_t unit;
INLINE lanes dot(lanes sum, unit a, const unit *b) {
    return _mm512_dpbf16_ps(sum, (__m512bh)_mm512_set1_epi32((int)a), (__m512bh)_mm512_loadu_si512(b));
}
INLINE void put(unit *row, int64_t i, float x) { ((uint16_t *)row)[i] = to_brain(x); }
INLINE void put_lanes(unit *row, int64_t i, lanes x) {
    _mm256_storeu_si256((__m256i *)((uint16_t *)row + i), (__m256i)_mm512_cvtneps_pbh(x));
}
#else
enum { PAIRED = 1 };
typedef float unit;
INLINE lanes dot(lanes sum, unit a, const unit *b) { return fma_of(all(a), load(b), sum); }
INLINE void put(unit *row, int64_t i, float x) { row[i] = x; }
INLINE void put_lanes(unit *row, int64_t i, lanes x) { store(row + i, x); }
#endif

INLINE int64_t up_to(int64_t count, int64_t multiple) { return (count + multiple - 1) / multiple * multiple; }

// c[r] = keep[r] c[r] + Σ_i a[r][i] b[i] for six rows and `wide` times sixteen columns
INLINE void tile_of(int wide, const unit *a, int64_t a_row, const unit *b, int64_t b_row, int64_t steps, const float *keep,
                    float *c, int64_t c_row) {
    lanes sums[TILE][WIDE];
    for (int r = 0; r < TILE; r++) {
        for (int w = 0; w < wide; w++) sums[r][w] = keep ? mul(all(keep[r]), load(c + r * c_row + w * LANES)) : all(0);
    }
    for (int64_t i = 0; i < steps; i++) {
        for (int r = 0; r < TILE; r++) {
            for (int w = 0; w < wide; w++) sums[r][w] = dot(sums[r][w], a[r * a_row + i], b + i * b_row + w * LANES);
        }
    }
    for (int r = 0; r < TILE; r++) {
        for (int w = 0; w < wide; w++) store(c + r * c_row + w * LANES, sums[r][w]);
    }
}

static void tile(int wide, const unit *a, int64_t a_row, const unit *b, int64_t b_row, int64_t steps, const float *keep,
                 float *c, int64_t c_row) {
    if (wide == WIDE) tile_of(WIDE, a, a_row, b, b_row, steps, keep, c, c_row);
#if defined(__AVX512F__)
    else if (wide == 3) tile_of(3, a, a_row, b, b_row, steps, keep, c, c_row);
    else if (wide == 2) tile_of(2, a, a_row, b, b_row, steps, keep, c, c_row);
    else tile_of(1, a, a_row, b, b_row, steps, keep, c, c_row);
#endif
}

INLINE const float *entry_at(const float *past, const float *own, const outlook *o, int64_t g, int64_t j) {
    if (j < o->past) return past + g * o->past_head + j * o->past_token;
    return own + g * o->own_head + (j - o->past) * o->own_token;
}

// One panel of a head's keys [width / PAIRED][PANEL] and as many entries' values [PANEL / PAIRED][padded width].
static void pack_panel(const outlook *o, int64_t g, int64_t first, unit *keys, unit *values) {
    int64_t entries = o->past + o->tokens, wide = up_to(o->width, LANES);
    memset(keys, 0, (size_t)(up_to(o->width, PAIRED) / PAIRED * PANEL) * sizeof(unit));
    memset(values, 0, (size_t)(PANEL / PAIRED * wide) * sizeof(unit));
    for (int64_t j = 0; j < PANEL && first + j < entries; j++) {
        const float *key = entry_at(o->past_keys, o->keys, o, g, first + j);
        const float *value = entry_at(o->past_values, o->values, o, g, first + j);
        for (int64_t d = 0; d < o->width; d++) put(keys + d / PAIRED * PANEL + j, d % PAIRED, key[d]);
        for (int64_t d = 0; d < o->width; d++) put(values + j / PAIRED * wide + d, j % PAIRED, value[d]);
    }
}

typedef struct {
    unit *queries, *shares;
    float *scores, *output, *largest, *sums, *keep;
    int64_t steps, wide;  // units of a row of queries, columns of a row of values
} desk;

static desk laid_out(const outlook *o, float *scratch) {
    desk d = {.steps = up_to(o->width, PAIRED) / PAIRED, .wide = up_to(o->width, LANES)};
    d.largest = scratch, d.sums = d.largest + ROWS_AT_ONCE, d.keep = d.sums + ROWS_AT_ONCE;
    d.scores = d.keep + ROWS_AT_ONCE;
    d.output = d.scores + ROWS_AT_ONCE * KEYS_AT_ONCE;
    d.queries = (unit *)(d.output + ROWS_AT_ONCE * d.wide);
    d.shares = d.queries + ROWS_AT_ONCE * d.steps;
    return d;
}

// One row's scores of entries [from, to) of `count` become shares, and what is outside none.
static void soften(float *scores, int64_t from, int64_t to, int64_t count, float scale, const desk *d, int64_t row) {
    unit *shares = d->shares + row * KEYS_AT_ONCE / PAIRED;
    if (from >= to) {
        memset(shares, 0, (size_t)(count / PAIRED) * sizeof(unit));
        d->keep[row] = 1;
        return;
    }
    for (int64_t i = 0; i < from; i++) scores[i] = LEAST;
    for (int64_t i = to; i < count; i++) scores[i] = LEAST;
    lanes best = all(LEAST);
    for (int64_t i = 0; i < count; i += LANES) best = larger(best, load(scores + i));
    float before = d->largest[row], now = scale * largest(best);
    now = now > before ? now : before;
    lanes total = all(0);
    for (int64_t i = 0; i < count; i += LANES) {
        lanes part = exponential(fma_of(all(scale), load(scores + i), all(-now)));
        put_lanes(shares, i, part);
        total = add(total, part);
    }
    float shrunk[LANES];
    store(shrunk, exponential(all(before - now)));
    d->keep[row] = before <= LEAST ? 0.0f : shrunk[0];
    d->largest[row] = now;
    d->sums[row] = d->sums[row] * d->keep[row] + sum(total);
}

// The tokens [first, last) of a head, over everything that they see.
static void attend_tokens(const outlook *o, int64_t head, int64_t first, int64_t last, const desk *d) {
    int64_t rows = last - first, padded = up_to(rows, TILE), g = head / (o->heads / o->groups);
    int64_t panels = up_to(o->past + o->tokens, PANEL) / PANEL;
    const unit *keys = (const unit *)o->packed_keys + g * panels * d->steps * PANEL;
    const unit *values = (const unit *)o->packed_values + g * panels * PANEL / PAIRED * d->wide;
    memset(d->queries, 0, (size_t)(padded * d->steps) * sizeof(unit));
    memset(d->output, 0, (size_t)(padded * d->wide) * sizeof(float));
    memset(d->shares, 0, (size_t)(padded * KEYS_AT_ONCE / PAIRED) * sizeof(unit));
    for (int64_t r = 0; r < padded; r++) {
        d->largest[r] = o->sinks ? o->sinks[head] : LEAST, d->sums[r] = o->sinks ? 1 : 0, d->keep[r] = 0;
    }
    for (int64_t r = 0; r < rows; r++) {
        const float *query = o->queries + head * o->query_head + (first + r) * o->query_token;
        for (int64_t i = 0; i < o->width; i++) put(d->queries + r * d->steps, i, query[i]);
    }
    int64_t lowest = o->window ? o->past + first + 1 - o->window : 0;
    int64_t begin = lowest > 0 ? lowest / KEYS_AT_ONCE * KEYS_AT_ONCE : 0, end = o->past + last;
    for (int64_t at = begin; at < end; at += KEYS_AT_ONCE) {
        int64_t count = up_to(end - at < KEYS_AT_ONCE ? end - at : KEYS_AT_ONCE, PANEL);
        for (int64_t p = 0; p < count; p += PANEL) {
            const unit *panel = keys + (at + p) * d->steps;
            for (int64_t r = 0; r < padded; r += TILE) {
                tile(WIDE, d->queries + r * d->steps, d->steps, panel, PANEL, d->steps, 0, d->scores + r * KEYS_AT_ONCE + p,
                     KEYS_AT_ONCE);
            }
        }
        for (int64_t r = 0; r < rows; r++) {
            int64_t seen = o->past + first + r + 1 - at, from = o->window ? seen - o->window : 0;
            soften(d->scores + r * KEYS_AT_ONCE, from > 0 ? from : 0, seen < count ? seen : count, count, (float)o->scale, d, r);
        }
        for (int64_t w = 0; w < d->wide; w += PANEL) {
            int wide = (int)((d->wide - w < PANEL ? d->wide - w : PANEL) / LANES);
            const unit *panel = values + at / PAIRED * d->wide + w;
            for (int64_t r = 0; r < padded; r += TILE) {
                tile(wide, d->shares + r * KEYS_AT_ONCE / PAIRED, KEYS_AT_ONCE / PAIRED, panel, d->wide, count / PAIRED,
                     d->keep + r, d->output + r * d->wide + w, d->wide);
            }
        }
    }
    for (int64_t r = 0; r < rows; r++) {
        float *output = o->output + head * o->output_head + (first + r) * o->output_token, inverse = 1.0f / d->sums[r];
        for (int64_t i = 0; i < o->width; i++) output[i] = d->output[r * d->wide + i] * inverse;
    }
}

// The last blocks of tokens see most, and are taken first.
void NAMED(attend, LEVEL)(outlook *o, int thread, int threads, meeting *here);
void NAMED(attend, LEVEL)(outlook *o, int thread, int threads, meeting *here) {
    int64_t panels = up_to(o->past + o->tokens, PANEL) / PANEL, wide = up_to(o->width, LANES);
    int64_t key_units = up_to(o->width, PAIRED) / PAIRED * PANEL, value_units = PANEL / PAIRED * wide;
    for (int64_t i = thread; i < o->groups * panels; i += threads) {
        pack_panel(o, i / panels, i % panels * PANEL, (unit *)o->packed_keys + i * key_units,
                   (unit *)o->packed_values + i * value_units);
    }
    uncomp_meet(here);
    desk d = laid_out(o, o->scratch + thread * o->scratch_floats);
    int64_t blocks = (o->tokens + ROWS_AT_ONCE - 1) / ROWS_AT_ONCE;
    for (;;) {
        int64_t taken = __atomic_fetch_add(&o->taken, 1, __ATOMIC_RELAXED);
        if (taken >= blocks * o->heads) return;
        int64_t first = (blocks - 1 - taken / o->heads) * ROWS_AT_ONCE;
        int64_t last = first + ROWS_AT_ONCE < o->tokens ? first + ROWS_AT_ONCE : o->tokens;
        attend_tokens(o, taken % o->heads, first, last, &d);
    }
}
