#include <cstdint>
#include <type_traits>

// A product of two small matrices: o [M, N] = a [M, K] · b [K, N], each read by its strides, o row by row.
//
// Blocks of 5 rows of a by 2 vectors of b, or of DOTS by 5 scalar products where both are read along k: as many sums as the
// registers hold (32 with AVX-512, else 16), so that each number that is read serves several of them. One thread, no
// packing, nothing allocated.
extern "C" void thalweg_product_small(const float* a, int64_t am, int64_t ak, const float* b, int64_t bk, int64_t bn, float* o,
                                      int64_t M, int64_t N, int64_t K) {
#if defined(__AVX512F__)
  constexpr int W = 16, DOTS = 4;
#else
  constexpr int W = 8, DOTS = 2;
#endif
  typedef float vec __attribute__((vector_size(W * 4), aligned(4), may_alias));
  auto one = [=](int64_t m, int64_t n) {
    float sum = 0;
    for (int64_t k = 0; k < K; k++) sum += a[m * am + k * ak] * b[k * bk + n * bn];
    o[m * N + n] = sum;
  };
  auto rows = [=](auto r_, auto c_, int64_t m, int64_t n) {
    constexpr int R = decltype(r_)::value, C = decltype(c_)::value;
    vec sum[R][C] = {}, x[C];
    for (int64_t k = 0; k < K; k++) {
      for (int c = 0; c < C; c++) x[c] = *(const vec*)(b + k * bk + n + c * W);
      for (int r = 0; r < R; r++) {
        const float f = a[(m + r) * am + k * ak];
        for (int c = 0; c < C; c++) sum[r][c] += f * x[c];
      }
    }
    for (int r = 0; r < R; r++)
      for (int c = 0; c < C; c++) *(vec*)(o + (m + r) * N + n + c * W) = sum[r][c];
  };
  auto dots = [=](auto r_, auto c_, int64_t m, int64_t n) {
    constexpr int R = decltype(r_)::value, C = decltype(c_)::value;
    vec sum[R][C] = {}, x[C];
    const int64_t whole = K / W * W;
    for (int64_t k = 0; k < whole; k += W) {
      for (int c = 0; c < C; c++) x[c] = *(const vec*)(b + (n + c) * bn + k);
      for (int r = 0; r < R; r++) {
        const vec f = *(const vec*)(a + (m + r) * am + k);
        for (int c = 0; c < C; c++) sum[r][c] += f * x[c];
      }
    }
    for (int r = 0; r < R; r++)
      for (int c = 0; c < C; c++) {
        float total = 0;
        for (int i = 0; i < W; i++) total += sum[r][c][i];
        for (int64_t k = whole; k < K; k++) total += a[(m + r) * am + k] * b[(n + c) * bn + k];
        o[(m + r) * N + n + c] = total;
      }
  };
  std::integral_constant<int, 1> i1;
  std::integral_constant<int, 2> i2;
  std::integral_constant<int, DOTS> idots;
  std::integral_constant<int, 5> i5;
  int64_t m, n = 0;
  if (bn == 1 && N >= W) {
    for (; n + 2 * W <= N; n += 2 * W) {
      for (m = 0; m + 5 <= M; m += 5) rows(i5, i2, m, n);
      for (; m < M; m++) rows(i1, i2, m, n);
    }
    for (; n + W <= N; n += W) {
      for (m = 0; m + 5 <= M; m += 5) rows(i5, i1, m, n);
      for (; m < M; m++) rows(i1, i1, m, n);
    }
    for (; n < N; n++)
      for (m = 0; m < M; m++) one(m, n);
  } else if (ak == 1 && bk == 1) {
    for (m = 0; m + DOTS <= M; m += DOTS) {
      for (n = 0; n + 5 <= N; n += 5) dots(idots, i5, m, n);
      for (; n < N; n++) dots(idots, i1, m, n);
    }
    for (; m < M; m++)
      for (n = 0; n < N; n++) dots(i1, i1, m, n);
  } else {
    for (m = 0; m < M; m++)
      for (n = 0; n < N; n++) one(m, n);
  }
}
