// What a program is: operations over places, run by several threads. engine/forward/program.py makes them, and checks
// every bound; the fields are in the order in which it declares them.
#ifndef UNCOMP_STEP_H
#define UNCOMP_STEP_H

#include <stdint.h>

enum { VERSION = 5 };
// How weights are stored; keys and values: as one of the first three.
enum { FLOAT32, FLOAT16, BFLOAT16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q4_K, Q5_K, Q6_K };
enum { EMBED, NORM, ADD, PRODUCT, GATED, ATTEND, MERGE };     // what an operation does
enum { SHARED, OWN, OUTPUT };                                // whose memory a place is in: all threads', each's, the caller's
enum { SILU, GELU };                                         // what a gate is passed through
enum { BESIDE = 2 };                                         // numbers behind a head's output: its largest score and its sum

// In floats; of a row: the next one's is a row's floats of that space farther on.
typedef struct {
    int64_t space, at;
} place;

typedef struct {
    int64_t code, wait, narrow;  // wait: all threads meet behind it; narrow: what is multiplied has yet to be made whole
    place from, to;
    int64_t rows, cols, kind, gate;
    const void *weight, *second;
    const float *bias, *second_bias;
    double scale, eps;
    // scratch: where weights are in blocks, a row of integers; of attention, queries and keys, which go to `kept` as well
    place scratch, kept;
    int64_t layer, heads, groups, width, turned, turns, window, norm_width;
    const float *query_norm, *key_norm;
} operation;

// Entries of a head in 8 or 4 bits (cache/quantized.py), which lie before the others: code · scale + zero by entry and group
// of channels. Keys are such that their products with queries which `spread` has turned are those of the keys.
typedef struct {
    const uint8_t *key_codes, *value_codes;
    const uint16_t *key_scales, *key_zeros, *value_scales, *value_zeros;
    int64_t count, key_bits, value_bits, groups, group;
} fewer;

// One layer of a cache: head g of a strand s is head s · groups + g, and has the entries [starts, ends) and room for what
// is added; `fewer` is of each head, or none. Where nobody wants `positions` there are none.
typedef struct {
    void *keys, *values;
    int32_t *positions;
    const int64_t *starts;
    int64_t *ends;
    const fewer *fewer;
    int64_t kind;
} held;

typedef struct {
    const operation *operations;
    int64_t count, layers, groups;
    float *shared, *own, *blocks;
    int64_t shared_floats, own_floats, rows;  // floats of a row, and how many rows there is room for
    int64_t block_floats;                     // of each thread: a block of entries and its scores
} program;

// Rows of a strand are tokens that follow each other: rows [firsts[s], firsts[s + 1]) are put behind strand s of the cache.
// What is `before` all strands is one strand, to which nothing is added.
typedef struct {
    int64_t rows, strands, from;  // logits are of the rows from here on
    const int64_t *tokens, *positions, *firsts;
    const float *turns;  // cosines and sines [rows, sets, 2, R]
    int64_t turns_floats;  // of a row
    float *output;
    const held *const *cache, *const *before;  // of every layer
} step;

typedef struct {
    int64_t kind, rows, cols, count;
    const void *weight;
    const float *input;  // [count, cols]
    float *output;       // [count, rows]
    float *scratch;      // of each thread, for a row of integers where weights are in blocks
    int64_t scratch_floats;
} product;

// Blocks as a file has them, tiles, and float32 numbers: packed, or unpacked: all rows, or those that are picked.
typedef struct {
    int64_t kind, rows, cols;
    const void *source;
    void *target;
    const int64_t *picked;
} layout_change;

// Many tokens of heads [tokens, width] behind `past` entries: attend.c. Strides are in floats; what is packed has room for
// whole panels of 64 entries, `scratch` is each thread's own.
typedef struct {
    int64_t heads, groups, width, tokens, past, window;
    const float *queries, *keys, *values, *past_keys, *past_values;
    float *output;
    int64_t query_head, query_token, own_head, own_token, past_head, past_token, output_head, output_token;
    double scale;
    const float *sinks;  // of each head a logit that takes weight and gives nothing, or none
    void *packed_keys, *packed_values;
    float *scratch;
    int64_t scratch_floats, taken;  // taken: blocks of tokens that have been begun
} outlook;

typedef struct {
    int32_t threads, arrived, round;
} meeting;

void uncomp_meet(meeting *here);

#endif
