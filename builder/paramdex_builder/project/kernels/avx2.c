/* See avx2.py.

   Products of int16 matrices, and the largest and least of every group of them:

   Rows of A and B (n x d and m x d, d a multiple of 4) have the bits of a float32 behind their d numbers, their scale.
   All is for 4 numbers x of A and 4 numbers y of B at a time, as two pairs each:

       x0 y0 + x1 y1 + x2 y2 + x3 y3 = (x0 + y2) (x2 + y0) + (x1 + y3) (x3 + y1) - (x0 x2 + x1 x3) - (y0 y2 + y1 y3)

   (Winograd 1968). Of four numbers that leaves two products, which one instruction makes of two sums; the rest is one
   number a row, added once, the row's *own*. Sums of two numbers are within int16, all others within int32, which the
   caller sees to. */

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
    CACHED = 1 << 14, /* bytes of B that stay in the nearest cache, with rows of A */
};

typedef int32_t pair __attribute__((may_alias, aligned(2)));

static float scale_of(const int16_t *row, int64_t d) {
    float scale;
    memcpy(&scale, row + d, sizeof scale);
    return scale;
}

/* -1 times the sum of x0 x2 + x1 x3 of a row. */
AVX2 static int32_t own_of(const int16_t *row, int64_t d) {
    const __m256i first = _mm256_set1_epi64x(0xFFFFFFFF); /* of two pairs */
    __m256i sums = _mm256_setzero_si256();
    for (int64_t at = 0; at < d; at += 16) {
        int16_t some[16] = {0};
        memcpy(some, row + at, (size_t)(d - at < 16 ? d - at : 16) * sizeof *some);
        const __m256i pairs = _mm256_loadu_si256((const __m256i *)some);
        const __m256i turned = _mm256_shuffle_epi32(pairs, 0xB1);
        sums = _mm256_add_epi32(sums, _mm256_madd_epi16(turned, _mm256_and_si256(pairs, first)));
    }
    uint32_t parts[LANES], sum = 0;
    _mm256_storeu_si256((__m256i *)parts, sums);
    for (int i = 0; i < LANES; i++) sum += parts[i];
    return (int32_t)(0 - sum);
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

/* Vectors of a panel: pairs of numbers of d, rounded up to 16; scales; what is the rows' own. */
static int64_t panel_size(int64_t d) { return 2 * LANES * ((d + 15) / 16) + 4; }

/* Up to 16 rows of B as a panel: the p-th 2 x 8 pairs are those of the 16 rows at 2 p. Rows of 0 behind. */
AVX2 static void pack(const int16_t *b, int64_t rows, int64_t d, __m256i *panel) {
    const int64_t stride = d + 2;
    __m256i eight[LANES];
    for (int64_t q = 0; 16 * q < d; q++)
        for (int half = 0; half < 2; half++) {
            transposed(b + half * LANES * stride, stride, rows - half * LANES, d, q, eight);
            for (int p = 0; p < LANES; p++) _mm256_storeu_si256(panel + 2 * (LANES * q + p) + half, eight[p]);
        }
    float scales[PANEL] = {0};
    int32_t own[PANEL] = {0};
    for (int64_t j = 0; j < rows; j++) {
        scales[j] = scale_of(b + j * stride, d);
        own[j] = own_of(b + j * stride, d);
    }
    memcpy(panel + panel_size(d) - 4, scales, sizeof scales);
    memcpy(panel + panel_size(d) - 2, own, sizeof own);
}

/* The n rows of B as panels. */
EXPORT AVX2 void paramdex_int16_pack(const int16_t *b, int64_t n, int64_t d, int16_t *panels) {
    for (int64_t row = 0; row < n; row += PANEL)
        pack(b + row * (d + 2), n - row < PANEL ? n - row : PANEL, d,
             (__m256i *)panels + row / PANEL * panel_size(d));
}

/* To the sums of a row with 2 x 8 rows of B come those of 4 numbers, of which ``b`` has the first pairs and then the
   second. In assembly, as compilers want more registers than there are. */
INLINE void add_products(__m256i *left, __m256i *right, const int16_t *x, const __m256i b[4]) {
    __m256i s, t, first, second;
    __asm__(
        "vpbroadcastd %6, %4\n\t"
        "vpbroadcastd %7, %5\n\t"
        "vpaddw %10, %4, %2\n\t"
        "vpaddw %8, %5, %3\n\t"
        "vpaddw %11, %4, %4\n\t"
        "vpaddw %9, %5, %5\n\t"
        "vpmaddwd %3, %2, %2\n\t"
        "vpmaddwd %5, %4, %4\n\t"
        "vpaddd %2, %0, %0\n\t"
        "vpaddd %4, %1, %1"
        : "+x"(*left), "+x"(*right), "=&x"(s), "=&x"(t), "=&x"(first), "=&x"(second)
        : "m"(*(const pair *)x), "m"(*(const pair *)(x + 2)), "x"(b[0]), "x"(b[1]), "x"(b[2]), "x"(b[3]));
}

/* -1 times the scores of some rows of A and the columns of some panels, into ``out``, and their least and largest so
   far of every row and lane. */
INLINE void block(const int16_t *a, const int32_t *own, int64_t d, const __m256i *panel, int64_t size, int64_t rows,
                  float *out, int64_t out_stride, int64_t columns, __m256 *peaks) {
    const int64_t stride = d + 2;
    __m256 scale[ROWS], low[ROWS], high[ROWS];
    for (int i = 0; i < rows; i++) {
        scale[i] = _mm256_set1_ps(-scale_of(a + i * stride, d));
        low[i] = peaks[2 * i];
        high[i] = peaks[2 * i + 1];
    }
    for (int64_t column = 0; column < columns; column += PANEL, panel += size) {
        const __m256i *others = panel + size - 2;
        const float *scales = (const float *)(panel + size - 4);
        __m256i sums[ROWS][2];
        for (int i = 0; i < rows; i++)
            for (int half = 0; half < 2; half++)
                sums[i][half] = _mm256_add_epi32(_mm256_set1_epi32(own[i]), _mm256_loadu_si256(others + half));
        for (int64_t p = 0; p < d; p += 4) {
            __m256i four[4];
            for (int j = 0; j < 4; j++) four[j] = _mm256_loadu_si256(panel + p + j);
            for (int i = 0; i < rows; i++) add_products(&sums[i][0], &sums[i][1], a + i * stride + p, four);
        }
        for (int i = 0; i < rows; i++) {
            /* one scale after the other: their product may be below float32's range where the score is not */
            __m256 left = _mm256_mul_ps(_mm256_cvtepi32_ps(sums[i][0]), scale[i]);
            __m256 right = _mm256_mul_ps(_mm256_cvtepi32_ps(sums[i][1]), scale[i]);
            left = _mm256_mul_ps(left, _mm256_loadu_ps(scales));
            right = _mm256_mul_ps(right, _mm256_loadu_ps(scales + LANES));
            low[i] = _mm256_min_ps(low[i], _mm256_min_ps(left, right));
            high[i] = _mm256_max_ps(high[i], _mm256_max_ps(left, right));
            float *row = out + i * out_stride + column;
            if (column + PANEL <= columns) {
                _mm256_storeu_ps(row, left);
                _mm256_storeu_ps(row + LANES, right);
            } else {
                float both[PANEL];
                _mm256_storeu_ps(both, left);
                _mm256_storeu_ps(both + LANES, right);
                memcpy(row, both, (size_t)(columns - column) * sizeof *row);
            }
        }
    }
    for (int i = 0; i < rows; i++) {
        peaks[2 * i] = low[i];
        peaks[2 * i + 1] = high[i];
    }
}

INLINE float largest(__m256 lanes) {
    __m128 four = _mm_max_ps(_mm256_castps256_ps128(lanes), _mm256_extractf128_ps(lanes, 1));
    four = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(four, _mm_movehdup_ps(four)));
}

/* -1 times the scores A B^T (n x m) into ``out``, and the largest score and the largest -1 times one of every
   ``group`` columns (a multiple of PANEL, or m) into ``top`` and ``bottom``. ``packed``: B is panels. Returns whether
   there was memory.

   Some panels at a time, as many of a group as stay in the cache, meet all rows of A. */
EXPORT AVX2 int paramdex_int16_scores(const int16_t *a, const int16_t *b, int64_t n, int64_t m, int64_t d, float *out,
                                      int64_t out_stride, int64_t group, float *top, float *bottom,
                                      int64_t peaks_stride, int packed) {
    const int64_t stride = d + 2, size = panel_size(d), in_group = (group + PANEL - 1) / PANEL;
    const int64_t fitting = CACHED / (size * (int64_t)sizeof(__m256i));
    const int64_t some = fitting < 1 ? 1 : fitting < in_group ? fitting : in_group;
    char *memory = malloc((size_t)((packed ? 0 : some * size) + 2 * n + n / LANES + 2) * sizeof(__m256i));
    if (!memory) return 0;
    __m256 *peaks = (__m256 *)(((uintptr_t)memory + 31) & ~(uintptr_t)31); /* vectors lie at multiples of 32 */
    int32_t *own = (int32_t *)(peaks + 2 * n);
    __m256i *scratch = (__m256i *)own + n / LANES + 1;
    for (int64_t i = 0; i < n; i++) own[i] = own_of(a + i * stride, d);
    for (int64_t first = 0, columns; first < m; first += columns) {
        const int64_t end = first / group * group + group < m ? first / group * group + group : m;
        columns = end - first < some * PANEL ? end - first : some * PANEL;
        const __m256i *panels = packed ? (const __m256i *)b + first / PANEL * size : scratch;
        for (int64_t column = 0; !packed && column < columns; column += PANEL)
            pack(b + (first + column) * stride, columns - column < PANEL ? columns - column : PANEL, d,
                 scratch + column / PANEL * size);
        if (first % group == 0)
            for (int64_t i = 0; i < 2 * n; i++) peaks[i] = _mm256_setzero_ps();
        for (int64_t row = 0; row < n && n >= ROWS; row += ROWS) {
            const int64_t from = row + ROWS <= n ? row : n - ROWS; /* some rows twice, to the same effect */
            block(a + from * stride, own + from, d, panels, size, ROWS, out + from * out_stride + first, out_stride,
                  columns, peaks + 2 * from);
        }
        for (int64_t row = 0; row < n && n < ROWS; row++)
            block(a + row * stride, own + row, d, panels, size, 1, out + row * out_stride + first, out_stride, columns,
                  peaks + 2 * row);
        if (first + columns == end)
            for (int64_t i = 0; i < n; i++) {
                top[i * peaks_stride + first / group] = largest(_mm256_sub_ps(_mm256_setzero_ps(), peaks[2 * i]));
                bottom[i * peaks_stride + first / group] = largest(peaks[2 * i + 1]);
            }
    }
    free(memory);
    return 1;
}

/* Some entries (``count``) of A B^T in float64: those of rows ``of_a`` of A (n x d, float64) and ``of_b`` of B (m x d,
   float32). */
EXPORT __attribute__((target("avx2,fma"))) void paramdex_dots(const double *a, const float *b, const int64_t *of_a,
                                                              const int64_t *of_b, int64_t count, int64_t d,
                                                              double *out) {
    for (int64_t i = 0; i < count; i++) {
        const double *x = a + of_a[i] * d;
        const float *y = b + of_b[i] * d;
        __m256d sums[4] = {_mm256_setzero_pd(), _mm256_setzero_pd(), _mm256_setzero_pd(), _mm256_setzero_pd()};
        int64_t j = 0;
        for (; j + 16 <= d; j += 16)
            for (int part = 0; part < 4; part++) {
                const __m256d wide = _mm256_cvtps_pd(_mm_loadu_ps(y + j + 4 * part));
                sums[part] = _mm256_fmadd_pd(_mm256_loadu_pd(x + j + 4 * part), wide, sums[part]);
            }
        double lanes[4], sum = 0;
        _mm256_storeu_pd(lanes, _mm256_add_pd(_mm256_add_pd(sums[0], sums[1]), _mm256_add_pd(sums[2], sums[3])));
        for (; j < d; j++) sum += x[j] * (double)y[j];
        out[i] = sum + ((lanes[0] + lanes[1]) + (lanes[2] + lanes[3]));
    }
}

/* Of ``count`` rows of a matrix of ``width`` columns, after an exclusive or with ``flip``, what is at least the row's
   key: places, the i-th row's from i width on, and what is there. Gives how many. */
EXPORT AVX2 int64_t paramdex_reaching(const int32_t *bits, const int64_t *of, const int32_t *keys, int64_t count,
                                      int64_t width, int32_t flip, int64_t *places, int32_t *found) {
    const __m256i flips = _mm256_set1_epi32(flip);
    int64_t n = 0;
    for (int64_t i = 0; i < count; i++) {
        const int32_t *row = bits + of[i] * width;
        const __m256i below = _mm256_set1_epi32(keys[i] - 1);
        int64_t j = 0;
        for (; j + LANES <= width; j += LANES) {
            const __m256i some = _mm256_xor_si256(_mm256_loadu_si256((const __m256i *)(row + j)), flips);
            unsigned mask = (unsigned)_mm256_movemask_ps(_mm256_castsi256_ps(_mm256_cmpgt_epi32(some, below)));
            for (; mask; mask &= mask - 1, n++) {
                const int lane = __builtin_ctz(mask);
                places[n] = i * width + j + lane;
                found[n] = row[j + lane] ^ flip;
            }
        }
        for (; j < width; j++)
            if ((row[j] ^ flip) >= keys[i]) {
                places[n] = i * width + j;
                found[n++] = row[j] ^ flip;
            }
    }
    return n;
}
