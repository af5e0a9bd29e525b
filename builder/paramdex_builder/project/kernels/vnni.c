/* See vnni.py.

   Which entries of A B^T reach a limit, for int8 matrices, tile by tile. Rows of A and B (n x d and m x d, d a multiple
   of 4) have the bits of a float32 behind their d numbers, their scale. One instruction multiplies 64 numbers without a
   sign with 64 that have one, and adds up by fours: to the numbers y of B comes 128, and sum x (y + 128) - 128 sum x is
   what we want. All sums are within int32, which the caller sees to. */

#include <immintrin.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(_WIN32)
#define EXPORT __declspec(dllexport)
#else
#define EXPORT __attribute__((visibility("default")))
#endif
#define VNNI __attribute__((target("avx512f,avx512bw,avx512vl,avx512vnni")))
#define INLINE static inline __attribute__((always_inline)) VNNI

enum {
    ROWS = 8,            /* of A: with 2 x 16 columns of B as many sums as registers hold */
    LANES = 16,
    COLUMNS = 2 * LANES, /* of B, that are worked on at a time: a panel */
};

typedef int32_t four __attribute__((may_alias, aligned(1)));

static float scale_of(const int8_t *row, int64_t d) {
    float scale;
    memcpy(&scale, row + d, sizeof scale);
    return scale;
}

/* Up to 32 rows of B, from ``b`` on, as a panel: their q-th four numbers, plus 128, beside each other; 0 behind. */
VNNI static void pack(const int8_t *b, int64_t rows, int64_t d, uint8_t *panel, float *scales) {
    for (int64_t j = 0; j < COLUMNS; j++) {
        scales[j] = j < rows ? scale_of(b + j * (d + 4), d) : 0.0f;
        for (int64_t q = 0; q < d / 4; q++) {
            const uint32_t some = j < rows ? (uint32_t) * (const four *)(b + j * (d + 4) + 4 * q) : 0;
            const uint32_t moved = some ^ 0x80808080u; /* plus 128, for each number */
            memcpy(panel + 4 * (q * COLUMNS + j), &moved, sizeof moved);
        }
    }
}

/* The sums of up to ROWS rows of A with a panel. */
INLINE void sums_of(const int8_t *a, int64_t d, const uint8_t *panel, const int32_t *start, int rows,
                    __m512i sums[ROWS][2]) {
    for (int i = 0; i < rows; i++) sums[i][0] = sums[i][1] = _mm512_set1_epi32(start[i]);
    for (int64_t q = 0; q < d / 4; q++) {
        const __m512i first = _mm512_loadu_si512(panel + 4 * q * COLUMNS);
        const __m512i second = _mm512_loadu_si512(panel + 4 * q * COLUMNS + 4 * LANES);
        for (int i = 0; i < rows; i++) {
            const __m512i x = _mm512_set1_epi32(*(const four *)(a + i * (d + 4) + 4 * q));
            sums[i][0] = _mm512_dpbusd_epi32(sums[i][0], first, x);
            sums[i][1] = _mm512_dpbusd_epi32(sums[i][1], second, x);
        }
    }
}

typedef struct {
    const int8_t *a, *b;
    const float *norms_a, *norms_b;
    const int32_t *words_a, *words_b;
    int64_t V, d, room, count;
    int64_t *pairs;
} search;

/* What reaches a limit among the sums of some rows, from ``row`` on, with a panel of ``columns`` columns. */
INLINE void select_from(search *s, __m512i sums[ROWS][2], int rows, int64_t row, int64_t column, int64_t columns,
                        const float *scales, float top, float bottom) {
    const __m512 above = _mm512_set1_ps(top), below = _mm512_set1_ps(-bottom);
    for (int half = 0; half < 2; half++) {
        const int64_t left = columns - half * LANES;
        const __mmask16 there = left >= LANES ? 0xFFFF : left > 0 ? (__mmask16)((1 << left) - 1) : 0;
        const __m512 of_b = _mm512_loadu_ps(scales + half * LANES);
        for (int i = 0; i < rows; i++) {
            const __m512 of_a = _mm512_set1_ps(scale_of(s->a + (row + i) * (s->d + 4), s->d));
            const __m512 scores = _mm512_mul_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(sums[i][half]), of_a), of_b);
            unsigned found = _mm512_mask_cmp_ps_mask(there, scores, above, _CMP_GE_OQ) |
                             _mm512_mask_cmp_ps_mask(there, scores, below, _CMP_LE_OQ);
            for (; found; found &= found - 1) {
                const int64_t j = column + half * LANES + __builtin_ctz(found);
                if (s->words_a[row + i] == s->words_b[j]) continue;
                if (s->count < s->room) s->pairs[s->count] = (row + i) << 32 | j;
                s->count++;
            }
        }
    }
}

/* The pairs of one tile of A and B, as vnni.py has it. */
VNNI static void tile(search *s, int64_t row, int64_t column, int64_t height, int64_t width, float top, float bottom,
                      float factor, float more, uint8_t *panel, int32_t *start) {
    const int64_t last = row + height < s->V ? row + height : s->V;
    const int64_t end = column + width < s->V ? column + width : s->V;
    const float least = top < bottom ? top : bottom;
    float scales[COLUMNS];
    __m512i sums[ROWS][2];
    for (int64_t i = row; i < last; i++) {
        start[i - row] = 0;
        for (int64_t q = 0; q < s->d; q++) start[i - row] -= 128 * s->a[i * (s->d + 4) + q];
    }
    for (int64_t j = column; j < end; j += COLUMNS) {
        const int64_t columns = end - j < COLUMNS ? end - j : COLUMNS;
        if (s->norms_a[row] * s->norms_b[j] * factor + more < least) return;
        pack(s->b + j * (s->d + 4), columns, s->d, panel, scales);
        for (int64_t i = row; i < last; i += ROWS) {
            const int rows = last - i < ROWS ? (int)(last - i) : ROWS;
            if (s->norms_a[i] * s->norms_b[j] * factor + more < least) break;
            if (rows == ROWS) {
                sums_of(s->a + i * (s->d + 4), s->d, panel, start + i - row, ROWS, sums);
                select_from(s, sums, ROWS, i, j, columns, scales, top, bottom);
            } else {
                sums_of(s->a + i * (s->d + 4), s->d, panel, start + i - row, rows, sums);
                select_from(s, sums, rows, i, j, columns, scales, top, bottom);
            }
            if (s->count > s->room) return;
        }
    }
}

/* The pairs of ``n`` tiles; gives how many, or where they are more than ``room``, some number over that; -1 where there
   is no memory. */
EXPORT VNNI int64_t paramdex_int8_pairs(const int8_t *a, const int8_t *b, const float *norms_a, const float *norms_b,
                                        const int32_t *words_a, const int32_t *words_b, int64_t V, int64_t d,
                                        const int32_t *tiles, int64_t n, int64_t height, int64_t width,
                                        const float *limits, float factor, float more, int64_t room, int64_t *pairs) {
    uint8_t *panel = malloc((size_t)(d * COLUMNS) + 1);
    int32_t *start = malloc((size_t)height * sizeof *start);
    if (!panel || !start) {
        free(panel);
        free(start);
        return -1;
    }
    search s = {a, b, norms_a, norms_b, words_a, words_b, V, d, room, 0, pairs};
    for (int64_t t = 0; t < n && s.count <= room; t++)
        tile(&s, tiles[2 * t], tiles[2 * t + 1], height, width, limits[2 * t], limits[2 * t + 1], factor, more, panel,
             start);
    free(panel);
    free(start);
    return s.count;
}
