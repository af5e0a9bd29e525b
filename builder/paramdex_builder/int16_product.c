/* Products of int16 matrices, and the largest and least of every group of them: see int16_product.py.

   Rows of A and B (n x d and m x d, d even) have the bits of a float32 behind their d numbers, their scale. Any part
   of a sum of products is within int32, which the caller sees to, so that sums are exact in any order. */

#include <immintrin.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(_WIN32)
#define EXPORT __declspec(dllexport)
#else
#define EXPORT __attribute__((visibility("default")))
#endif
#define AVX2 __attribute__((target("avx2")))
#define INLINE static inline __attribute__((always_inline)) AVX2

enum {
    ROWS = 4,    /* of A: with 2 x 8 columns of B as many sums as registers hold */
    PANEL = 16,  /* columns of a product that are worked on at a time */
    LANES = 8,
};

static float scale_of(const int16_t *row, int64_t d) {
    float scale;
    memcpy(&scale, row + d, sizeof scale);
    return scale;
}

/* Of 8 rows of B (those from ``rows`` on are 0) the numbers 16 q to 16 q + 15 as 8 vectors, the p-th of which has the
   p-th pair of numbers of every row. */
INLINE void transposed(const int16_t *b, int64_t stride, int64_t rows, int64_t d, int64_t q, __m256i *out) {
    __m256i r[LANES], s[LANES], t[LANES];
    for (int i = 0; i < LANES; i++) {
        if (i >= rows) {
            r[i] = _mm256_setzero_si256();
        } else if (16 * (q + 1) <= d) {
            r[i] = _mm256_loadu_si256((const __m256i *)(b + i * stride + 16 * q));
        } else {
            int16_t rest[16] = {0};
            memcpy(rest, b + i * stride + 16 * q, (size_t)(d - 16 * q) * sizeof *rest);
            r[i] = _mm256_loadu_si256((const __m256i *)rest);
        }
    }
    for (int i = 0; i < LANES; i += 2) {
        s[i] = _mm256_unpacklo_epi32(r[i], r[i + 1]);
        s[i + 1] = _mm256_unpackhi_epi32(r[i], r[i + 1]);
    }
    for (int i = 0; i < LANES; i += 4) {
        t[i] = _mm256_unpacklo_epi64(s[i], s[i + 2]);
        t[i + 1] = _mm256_unpackhi_epi64(s[i], s[i + 2]);
        t[i + 2] = _mm256_unpacklo_epi64(s[i + 1], s[i + 3]);
        t[i + 3] = _mm256_unpackhi_epi64(s[i + 1], s[i + 3]);
    }
    for (int i = 0; i < 4; i++) {
        out[i] = _mm256_permute2x128_si256(t[i], t[i + 4], 0x20);
        out[i + 4] = _mm256_permute2x128_si256(t[i], t[i + 4], 0x31);
    }
}

/* Up to 16 rows of B as pairs of numbers: the p-th 2 x 8 pairs are those of the 16 rows at 2 p. Rows of 0 behind. */
AVX2 static void pack(const int16_t *b, int64_t stride, int64_t rows, int64_t d, __m256i *panel) {
    __m256i eight[LANES];
    for (int64_t q = 0; 16 * q < d; q++)
        for (int half = 0; half < 2; half++) {
            transposed(b + half * LANES * stride, stride, rows - half * LANES, d, q, eight);
            for (int p = 0; p < LANES; p++) panel[2 * (LANES * q + p) + half] = eight[p];
        }
}

/* sum += the products of 8 pairs of numbers. In assembly, as compilers that see the sum apart from the products keep more
   of these in registers than there are. */
INLINE void add_products(__m256i *sum, __m256i x, __m256i y) {
    __m256i products;
    __asm__("vpmaddwd %3, %2, %1\n\tvpaddd %1, %0, %0" : "+x"(*sum), "=&x"(products) : "x"(x), "x"(y));
}

/* -1 times the scores of some rows of A and a panel of B, into ``out`` (``columns`` of every row), and the largest and
   least scores so far of every row and lane. */
INLINE void block(const int16_t *a, int64_t stride, const __m256i *panel, int64_t d, const float *scales, int64_t rows,
                  float *out, int64_t out_stride, int64_t columns, __m256 *peaks) {
    __m256i sums[ROWS][2];
    for (int i = 0; i < rows; i++) sums[i][0] = sums[i][1] = _mm256_setzero_si256();
    for (int64_t p = 0; p < d / 2; p++) {
        const __m256i left = _mm256_loadu_si256(panel + 2 * p), right = _mm256_loadu_si256(panel + 2 * p + 1);
        for (int i = 0; i < rows; i++) {
            int32_t pair;
            memcpy(&pair, a + i * stride + 2 * p, sizeof pair);
            const __m256i both = _mm256_set1_epi32(pair);
            add_products(&sums[i][0], both, left);
            add_products(&sums[i][1], both, right);
        }
    }
    for (int i = 0; i < rows; i++) {
        const __m256 scale = _mm256_set1_ps(-scale_of(a + i * stride, d));
        __m256 scores[2];
        for (int half = 0; half < 2; half++) {
            scores[half] = _mm256_mul_ps(_mm256_cvtepi32_ps(sums[i][half]), scale);
            scores[half] = _mm256_mul_ps(scores[half], _mm256_loadu_ps(scales + half * LANES));
            peaks[2 * i] = _mm256_min_ps(peaks[2 * i], scores[half]);
            peaks[2 * i + 1] = _mm256_max_ps(peaks[2 * i + 1], scores[half]);
        }
        float *row = out + i * out_stride;
        if (columns == PANEL) {
            _mm256_storeu_ps(row, scores[0]);
            _mm256_storeu_ps(row + LANES, scores[1]);
        } else {
            memcpy(row, scores, (size_t)columns * sizeof *row);
        }
    }
}

INLINE float largest(__m256 lanes) {
    __m128 four = _mm_max_ps(_mm256_castps256_ps128(lanes), _mm256_extractf128_ps(lanes, 1));
    four = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(four, _mm_movehdup_ps(four)));
}

/* -1 times the scores A B^T (n x m) into ``out``, and the largest score and the largest -1 times one of every
   ``group`` columns (a multiple of PANEL, or m) into ``top`` and ``bottom``. Returns whether there was memory. */
EXPORT AVX2 int paramdex_int16_scores(const int16_t *a, const int16_t *b, int64_t n, int64_t m, int64_t d, float *out,
                                      int64_t out_stride, int64_t group, float *top, float *bottom,
                                      int64_t peaks_stride) {
    const int64_t stride = d + 2, blocks = (d + 15) / 16;
    __m256i *panel = malloc((size_t)(2 * LANES * blocks) * sizeof *panel + sizeof *panel);
    __m256 *peaks = malloc((size_t)(2 * n) * sizeof *peaks + sizeof *peaks);
    const int enough = panel && peaks;
    /* malloc aligns to 16 bytes and these are read and written as 32 */
    __m256i *own_panel = (__m256i *)(((uintptr_t)panel + 31) & ~(uintptr_t)31);
    __m256 *own_peaks = (__m256 *)(((uintptr_t)peaks + 31) & ~(uintptr_t)31);
    for (int64_t column = 0; enough && column < m; column += PANEL) {
        const int64_t columns = m - column < PANEL ? m - column : PANEL;
        float scales[PANEL] = {0};
        for (int64_t j = 0; j < columns; j++) scales[j] = scale_of(b + (column + j) * stride, d);
        pack(b + column * stride, stride, columns, d, own_panel);
        if (column % group == 0)
            for (int64_t i = 0; i < 2 * n; i++) own_peaks[i] = _mm256_setzero_ps();
        int64_t row = 0;
        for (; row + ROWS <= n; row += ROWS)
            block(a + row * stride, stride, own_panel, d, scales, ROWS, out + row * out_stride + column, out_stride,
                  columns, own_peaks + 2 * row);
        for (; row < n; row++)
            block(a + row * stride, stride, own_panel, d, scales, 1, out + row * out_stride + column, out_stride,
                  columns, own_peaks + 2 * row);
        if ((column + columns) % group == 0 || column + columns == m)
            for (int64_t i = 0; i < n; i++) {
                top[i * peaks_stride + column / group] = largest(_mm256_sub_ps(_mm256_setzero_ps(), own_peaks[2 * i]));
                bottom[i * peaks_stride + column / group] = largest(own_peaks[2 * i + 1]);
            }
    }
    free(panel);
    free(peaks);
    return enough;
}
