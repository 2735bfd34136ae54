// One decode step of one row: a program of products, norms, rotations and attention over ragged heads.
//
//     product     y = scale (W x + b), 16 rows at a time, weights as they are stored, sums in float32 (blocks.h: of
//                 whole numbers)
//     attention   of a head's H/G queries over its own entries, in blocks with a running maximum (online softmax):
//                 the threads share all heads' entries evenly, whatever the lengths; MERGE joins what they found
//
// Small work (norms, rotations, sums) every thread does for itself, which is cheaper than to wait for another. This file
// is compiled once for each set of instructions; LEVEL names it.
#include "blocks.h"

#define NAMED_(name, level) uncomp_##name##_##level
#define NAMED(name, level) NAMED_(name, level)

enum { ROWS = 4, BLOCK = 64, MOST_ROWS = 8 };
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

// y[i] = rows[i] · x for four rows; the same places of the four that lie behind them are fetched meanwhile.
INLINE void four_dots(const uint8_t *const rows[ROWS], int kind, int64_t cols, int64_t ahead, const float *x, float *y) {
    lanes a = all(0), b = all(0), c = all(0), d = all(0);
    int64_t i = 0, size = SIZES[kind];
    for (; i + LANES <= cols; i += LANES) {
        lanes v = load(x + i);
        if (i * size % 64 == 0) {
            for (int r = 0; r < ROWS; r++) __builtin_prefetch(rows[r] + i * size + ahead);
        }
        a = fma_of(take(rows[0], kind, i), v, a);
        b = fma_of(take(rows[1], kind, i), v, b);
        c = fma_of(take(rows[2], kind, i), v, c);
        d = fma_of(take(rows[3], kind, i), v, d);
    }
    y[0] = sum(a), y[1] = sum(b), y[2] = sum(c), y[3] = sum(d);
    for (; i < cols; i++) {
        for (int r = 0; r < ROWS; r++) y[r] += take_one(rows[r], kind, i) * x[i];
    }
}

// y[first..last) = matrix · x; of the last rows, where fewer than four are left, some are taken twice.
INLINE void dots_of(const uint8_t *matrix, int kind, int64_t cols, const float *x, int64_t first, int64_t last, float *y) {
    int64_t size = cols * SIZES[kind];
    for (int64_t row = first; row < last; row += ROWS) {
        const uint8_t *rows[ROWS];
        float found[ROWS];
        for (int r = 0; r < ROWS; r++) rows[r] = matrix + (row + r < last ? row + r : last - 1) * size;
        four_dots(rows, kind, cols, ROWS * size, x, found);
        for (int r = 0; r < ROWS && row + r < last; r++) y[row + r - first] = found[r];
    }
}

// Of weights in blocks x is a narrowed row, and `first` begins a tile.
static void dots(const void *matrix, int64_t kind, int64_t cols, const void *x, int64_t first, int64_t last, float *y) {
    if (kind > BFLOAT16) block_dots(matrix, kind, cols, x, first, last, y);
    else if (kind == FLOAT16) dots_of(matrix, FLOAT16, cols, x, first, last, y);
    else if (kind == BFLOAT16) dots_of(matrix, BFLOAT16, cols, x, first, last, y);
    else dots_of(matrix, FLOAT32, cols, x, first, last, y);
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

static void multiply(const operation *op, const void *x, float *y, int thread, int threads) {
    int64_t units = (op->rows + LANES - 1) / LANES;
    int64_t first = share(units, thread, threads) * LANES, end = share(units, thread + 1, threads) * LANES;
    int64_t last = end < op->rows ? end : op->rows;
    dots(op->weight, op->kind, op->cols, x, first, last, y + first);
    add_bias(y + first, op->bias, first, last - first);
    float scale = (float)op->scale;
    for (int64_t i = first; scale != 1.0f && i < last; i++) y[i] *= scale;
}

// y = act(W x + b) · (V x + c)
static void multiply_gated(const operation *op, const void *x, float *y, int thread, int threads) {
    int64_t units = (op->rows + LANES - 1) / LANES;
    for (int64_t unit = share(units, thread, threads); unit < share(units, thread + 1, threads); unit++) {
        int64_t first = unit * LANES, last = first + LANES < op->rows ? first + LANES : op->rows;
        float gate[LANES] = {0}, up[LANES] = {0};
        dots(op->weight, op->kind, op->cols, x, first, last, gate);
        dots(op->second, op->kind, op->cols, x, first, last, up);
        add_bias(gate, op->bias, first, last - first);
        add_bias(up, op->second_bias, first, last - first);
        store(gate, mul(gated(load(gate), op->gate), load(up)));
        memcpy(y + first, gate, (size_t)(last - first) * sizeof(float));
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

// o ← keep o + Σ_j p[j] values[j]
INLINE void weigh_of(const uint8_t *values, int kind, int64_t count, int64_t width, const float *p, float keep, float *o) {
    int64_t i = 0, row = width * SIZES[kind];
    for (; i + 4 * LANES <= width; i += 4 * LANES) {
        lanes k = all(keep), a = mul(k, load(o + i)), b = mul(k, load(o + i + LANES));
        lanes c = mul(k, load(o + i + 2 * LANES)), d = mul(k, load(o + i + 3 * LANES));
        for (int64_t j = 0; j < count; j++) {
            const uint8_t *v = values + j * row;
            lanes weight = all(p[j]);
            a = fma_of(weight, take(v, kind, i), a);
            b = fma_of(weight, take(v, kind, i + LANES), b);
            c = fma_of(weight, take(v, kind, i + 2 * LANES), c);
            d = fma_of(weight, take(v, kind, i + 3 * LANES), d);
        }
        store(o + i, a), store(o + i + LANES, b), store(o + i + 2 * LANES, c), store(o + i + 3 * LANES, d);
    }
    for (; i + LANES <= width; i += LANES) {
        lanes a = mul(all(keep), load(o + i));
        for (int64_t j = 0; j < count; j++) a = fma_of(all(p[j]), take(values + j * row, kind, i), a);
        store(o + i, a);
    }
    for (; i < width; i++) {
        float a = keep * o[i];
        for (int64_t j = 0; j < count; j++) a += p[j] * take_one(values + j * row, kind, i);
        o[i] = a;
    }
}

static void weigh(const uint8_t *values, int64_t kind, int64_t count, int64_t width, const float *p, float keep, float *o) {
    if (kind == FLOAT16) weigh_of(values, FLOAT16, count, width, p, keep, o);
    else if (kind == BFLOAT16) weigh_of(values, BFLOAT16, count, width, p, keep, o);
    else weigh_of(values, FLOAT32, count, width, p, keep, o);
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

// The queries of one head over at most BLOCK entries: out [queries, width + BESIDE].
static void attend_block(const operation *op, const float *queries, const uint8_t *keys, const uint8_t *values, int64_t kind,
                         int64_t count, float *scores, float *out) {
    for (int64_t q = 0; q < op->heads / op->groups; q++) {
        float *o = out + q * (op->width + BESIDE);
        dots(keys, kind, op->width, queries + q * op->width, 0, count, scores);
        float keep = soften(scores, count, (float)op->scale, o + op->width);
        weigh(values, kind, count, op->width, scores, keep, o);
    }
}

static void codes_of(const uint8_t *codes, int64_t bits, int64_t entry, int64_t width, float *y) {
    int64_t half = (width + 1) / 2;
    const uint8_t *row = codes + entry * (bits == 8 ? width : half);
    for (int64_t i = 0; i < (bits == 8 ? width : half); i++) y[i] = bits == 8 ? row[i] : row[i] & 15;
    for (int64_t i = 0; bits != 8 && i < width - half; i++) y[half + i] = row[i] >> 4;
}

// One entry's keys and values in float32.
static void widen(const fewer *of, int64_t entry, int64_t width, float *key, float *value) {
    codes_of(of->key_codes, of->bits, entry, width, key);
    codes_of(of->value_codes, of->bits, entry, width, value);
    const uint16_t *scales = of->key_scales + of->block[entry] * width, *zeros = of->key_zeros + of->block[entry] * width;
    int64_t i = 0;
    for (; i + LANES <= width; i += LANES) {
        store(key + i, add(mul(load(key + i), load_half(scales + i)), load_half(zeros + i)));
    }
    for (; i < width; i++) key[i] = key[i] * from_half(scales[i]) + from_half(zeros[i]);
    for (int64_t g = 0; g < of->groups; g++) {
        float scale = from_half(of->value_scales[entry * of->groups + g]);
        float zero = from_half(of->value_zeros[entry * of->groups + g]);
        int64_t end = (g + 1) * of->group < width ? (g + 1) * of->group : width;
        for (i = g * of->group; i < end; i++) value[i] = value[i] * scale + zero;
    }
}

// A head's queries over its entries [first, last), those in fewer bits counted first; `wide` holds BLOCK keys and values.
static void attend_run(const operation *op, const float *queries, const held *cache, int64_t g, int64_t first, int64_t last,
                       float *scores, float *wide, float *out) {
    int64_t width = op->width, row = width * SIZES[cache->kind], before = cache->fewer ? cache->fewer[g].count : 0;
    float *wide_values = wide + BLOCK * width;
    while (first < last) {
        int64_t end = first < before && last > before ? before : last;
        int64_t some = end - first < BLOCK ? end - first : BLOCK;
        if (first < before) {
            for (int64_t i = 0; i < some; i++) {
                widen(cache->fewer + g, first + i, width, wide + i * width, wide_values + i * width);
            }
            attend_block(op, queries, (uint8_t *)wide, (uint8_t *)wide_values, FLOAT32, some, scores, out);
        } else {
            int64_t at = (cache->starts[g] + first - before) * row;
            attend_block(op, queries, (uint8_t *)cache->keys + at, (uint8_t *)cache->values + at, cache->kind, some, scores,
                         out);
        }
        first += some;
    }
}

INLINE void put(void *to, int64_t kind, int64_t at, const float *from, int64_t count) {
    for (int64_t i = 0; i < count; i++) {
        if (kind == FLOAT16) ((uint16_t *)to)[at + i] = to_half(from[i]);
        else if (kind == BFLOAT16) ((uint16_t *)to)[at + i] = to_brain(from[i]);
        else ((float *)to)[at + i] = from[i];
    }
}

// How many entries of a head there are with the new one, and how many are seen.
INLINE int64_t entries_of(const held *cache, int64_t g) {
    return cache->ends[g] + 1 - cache->starts[g] + (cache->fewer ? cache->fewer[g].count : 0);
}

INLINE int64_t seen_of(const operation *op, int64_t entries) {
    return op->window && entries > op->window ? op->window : entries;
}

// Each thread takes a share of all heads' entries; who has a head's last one puts the new token there first.
static void attend(const operation *op, const step *now, const float *qkv, float *scratch, float *kept, float *out,
                   int thread, int threads) {
    const held *cache = now->cache[op->layer];
    int64_t width = op->width, per = op->heads / op->groups, each = width + BESIDE, total = 0, before = 0;
    float *queries = scratch, *keys = queries + op->heads * width, *scores = keys + op->groups * width;
    float *wide = scores + BLOCK;
    const float *fresh_keys = qkv + op->heads * width, *fresh_values = fresh_keys + op->groups * width;
    prepare(op, qkv, op->heads, op->query_norm, now->turns, queries);
    prepare(op, fresh_keys, op->groups, op->key_norm, now->turns, keys);
    if (thread == 0) memcpy(kept, queries, (size_t)(op->heads * width) * sizeof(float));
    out += thread * op->heads * each;
    memset(out, 0, (size_t)(op->heads * each) * sizeof(float));
    for (int64_t head = 0; head < op->heads; head++) out[head * each + width] = LEAST;
    for (int64_t g = 0; g < op->groups; g++) total += seen_of(op, entries_of(cache, g));
    int64_t from = share(total, thread, threads), to = share(total, thread + 1, threads);
    for (int64_t g = 0; g < op->groups; g++) {
        int64_t entries = entries_of(cache, g), seen = seen_of(op, entries);
        int64_t a = (from > before ? from : before) - before, b = (to < before + seen ? to : before + seen) - before;
        before += seen;
        if (a >= b) continue;
        if (b == seen) {
            put(cache->keys, cache->kind, cache->ends[g] * width, keys + g * width, width);
            put(cache->values, cache->kind, cache->ends[g] * width, fresh_values + g * width, width);
            cache->positions[cache->ends[g]] = (int32_t)now->position;
        }
        attend_run(op, queries + g * per * width, cache, g, entries - seen + a, entries - seen + b, scores, wide,
                   out + g * per * each);
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

INLINE float *at(const program *p, const step *now, place where, int thread) {
    float *base = where.space == SHARED ? p->shared : where.space == OWN ? p->own + thread * p->own_floats : now->output;
    return base + where.at;
}

void NAMED(execute, LEVEL)(const program *p, const step *now, int thread, int threads, meeting *here);
void NAMED(execute, LEVEL)(const program *p, const step *now, int thread, int threads, meeting *here) {
    for (int64_t i = 0; i < p->count; i++) {
        const operation *op = p->operations + i;
        float *from = at(p, now, op->from, thread), *to = at(p, now, op->to, thread);
        float *scratch = at(p, now, op->scratch, thread);
        switch (op->code) {
            case EMBED: embed(op, now->token, to); break;
            case NORM: normalise(from, op->weight, op->cols, op->eps, to); break;
            case ADD: add_to(op, from, to); break;
            case PRODUCT: multiply(op, ready(from, op->kind, op->cols, scratch), to, thread, threads); break;
            case GATED: multiply_gated(op, ready(from, op->kind, op->cols, scratch), to, thread, threads); break;
            case ATTEND: attend(op, now, from, scratch, at(p, now, op->kept, thread), to, thread, threads); break;
            case MERGE: merge(op, from, threads, to); break;
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
    const float *rows[MOST_ROWS];
    for (int64_t row = 0; row < p->count; row++) {
        rows[row] = ready(p->input + row * p->cols, p->kind, p->cols, scratch + row * each);
    }
    for (int64_t unit = begin; unit < end; unit++) {
        int64_t first = unit * LANES, last = first + LANES < p->rows ? first + LANES : p->rows;
        for (int64_t row = 0; row < p->count; row++) {
            dots(p->weight, p->kind, p->cols, rows[row], first, last, p->output + row * p->rows + first);
        }
    }
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
