// What a transformer layer does beside its matrix products, on a stream of sequences without padding, in float32 on CPUs:
// attention within each sequence, dropout + residual + layer norm, bias + GELU, and dropout; forward and backward.
//
// One source for every vector width: the compiler's flags decide (AVX-512: 16 floats, AVX2: 8, others: 4). Plain C functions on
// pointers, so that nothing of PyTorch's headers is compiled; threads are those of the OpenMP that PyTorch has loaded.
//
// Dropout masks are a function of (seed, row, column), made again in backward instead of being stored, and the same for any
// number of threads. Sums over rows are made in a fixed number of pieces, so that they do not depend on it either.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#if defined(__AVX512F__)
constexpr int W = 16, REGISTERS = 32;
#elif defined(__AVX2__)
constexpr int W = 8, REGISTERS = 16;
#else
constexpr int W = 4, REGISTERS = 16;
#endif

typedef float vec __attribute__((vector_size(W * 4)));
typedef int32_t ivec __attribute__((vector_size(W * 4)));
typedef uint32_t uvec __attribute__((vector_size(W * 4)));

namespace {

constexpr int PIECES = 32;  // of a sum over rows

inline vec load(const float* p) { vec v; std::memcpy(&v, p, sizeof v); return v; }
inline void store(float* p, vec v) { std::memcpy(p, &v, sizeof v); }
inline vec all(float x) { return x - vec{}; }
inline vec choose(ivec mask, vec yes, vec no) { return mask ? yes : no; }
inline float sum(vec v) { float total = 0; for (int i = 0; i < W; i++) total += v[i]; return total; }
inline int64_t round_up(int64_t n) { return (n + W - 1) / W * W; }

// The columns of a vector that are below `end`.
inline ivec below(int64_t first, int64_t end) {
    ivec column;
    for (int i = 0; i < W; i++) column[i] = i;
    return column < ivec{} + int32_t(std::min<int64_t>(end - first, W));
}

// exp, to 2 units in the last place; what is not a number stays so, and what would underflow becomes 0.
inline vec exponential(vec x) {
    const ivec tiny = x < all(-87.3f);
    x = choose(tiny, all(-87.3f), choose(x > all(88.3f), all(88.3f), x));
    const vec shifted = x * 1.44269504f + 12582912.0f;  // 1.5 x 2^23: rounds to a whole number, in the low bits
    const vec n = shifted - 12582912.0f;
    const vec r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    vec p = all(1.9875691500e-4f);
    for (float c : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f}) p = p * r + c;
    p = p * r * r + r + 1.0f;
    const ivec bits = ((ivec)shifted - 0x4B400000 + 127) << 23;
    return choose(tiny, vec{}, p * (vec)bits);
}

// ---- dropout masks from a counter

inline uint64_t mix(uint64_t x) {  // splitmix64
    x += 0x9E3779B97F4A7C15ull;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
    return x ^ (x >> 31);
}

struct Mask {
    uint64_t seed;
    int32_t dropped;  // of 2^31 equally likely numbers
    vec kept;         // what a kept element is multiplied with

    Mask(int64_t seed, double rate) : seed(mix(uint64_t(seed))), dropped(int32_t(rate * 2147483648.0)), kept(all(1 / (1 - rate))) {}

    uint32_t row(uint64_t number) const { return uint32_t(mix(seed ^ mix(number))); }

    // Factors of the W columns from `column` on.
    vec factors(uint32_t row, int64_t column) const {
        uvec x;
        for (int i = 0; i < W; i++) x[i] = i;
        x = ((x + uint32_t(column)) * 0x9E3779B9u) ^ row;  // then a finalizer of 32 bits (C. Wellons' lowbias32)
        x = (x ^ (x >> 16)) * 0x7FEB352Du;
        x = (x ^ (x >> 15)) * 0x846CA68Bu;
        x = x ^ (x >> 16);
        return choose((ivec)(x >> 1) >= dropped, kept, vec{});
    }
};

// ---- small matrix products: C[M, N] (+)= A[M, K] B[K, N], with rows of B and C contiguous and N a multiple of W

struct Left {  // A, read one element at a time, so that its transpose is as good
    const float* at;
    int64_t row, column;
};

template <int ROWS, int VECS>
inline void tile(int64_t K, Left a, const float* b, int64_t b_row, float* c, int64_t c_row, bool add) {
    vec sums[ROWS][VECS];
    for (int i = 0; i < ROWS; i++)
        for (int j = 0; j < VECS; j++) sums[i][j] = add ? load(c + i * c_row + j * W) : vec{};
    for (int64_t k = 0; k < K; k++, b += b_row) {
        vec right[VECS];
        for (int j = 0; j < VECS; j++) right[j] = load(b + j * W);
        for (int i = 0; i < ROWS; i++) {
            const vec left = all(a.at[i * a.row + k * a.column]);
            for (int j = 0; j < VECS; j++) sums[i][j] += left * right[j];
        }
    }
    for (int i = 0; i < ROWS; i++)
        for (int j = 0; j < VECS; j++) store(c + i * c_row + j * W, sums[i][j]);
}

template <int ROWS, int VECS>
void rows_of(int64_t M, int64_t K, Left a, const float* b, int64_t b_row, float* c, int64_t c_row, bool add) {
    for (; M >= ROWS; M -= ROWS, a.at += ROWS * a.row, c += ROWS * c_row) tile<ROWS, VECS>(K, a, b, b_row, c, c_row, add);
    if constexpr (ROWS > 1)
        if (M) rows_of<ROWS / 2, VECS>(M, K, a, b, b_row, c, c_row, add);
}

template <int VECS>
void columns_of(int64_t M, int64_t N, int64_t K, Left a, const float* b, int64_t b_row, float* c, int64_t c_row, bool add) {
    constexpr int ROWS = std::min(12, (REGISTERS - VECS - 1) / VECS);  // sums, a row of B and an element of A in registers
    int64_t n = 0;
    for (; n + VECS * W <= N; n += VECS * W) rows_of<ROWS, VECS>(M, K, a, b + n, b_row, c + n, c_row, add);
    if constexpr (VECS > 1)
        if (n < N) columns_of<VECS / 2>(M, N - n, K, a, b + n, b_row, c + n, c_row, add);
}

inline void multiply(int64_t M, int64_t N, int64_t K, Left a, const float* b, int64_t b_row, float* c, int64_t c_row, bool add) {
    columns_of<REGISTERS == 32 ? 4 : 2>(M, N, K, a, b, b_row, c, c_row, add);
}

// ---- attention

struct Sequences {
    int64_t count, heads, size;                    // of a head
    const int32_t *query_ends, *key_ends;          // [count + 1]
    int64_t query_row, key_row, value_row;         // floats from one token to the next
    float scale;
    double dropout;
    int64_t seed;
    int32_t causal, window;                        // window < 0: none
};

constexpr int64_t BLOCK = 48;  // queries at a time

// [keys, size] as [size, keys], columns filled up with zeros.
void transpose(const float* from, int64_t row, int64_t keys, int64_t size, float* to, int64_t to_row) {
    for (int64_t e = 0; e < size; e++) std::fill(to + e * to_row + keys, to + (e + 1) * to_row, 0.0f);
    for (int64_t j = 0; j < keys; j++)
        for (int64_t e = 0; e < size; e++) to[e * to_row + j] = from[j * row + e];
}

struct Range {  // of the keys that a query sees
    int64_t first, end;
};

inline Range seen(const Sequences& s, int64_t query, int64_t keys) {
    Range range{0, keys};
    if (s.causal) range.end = std::min(keys, query + 1);
    if (s.window >= 0) {
        range.first = std::max<int64_t>(0, query - s.window);
        range.end = std::min(range.end, query + s.window + 1);
    }
    return range;
}

// Scores of one query become exp(score x scale - shift) where it sees the key and 0 elsewhere.
inline void exponentials(float* scores, Range range, int64_t width, float scale, float shift) {
    for (int64_t j = 0; j < width; j += W) {
        const ivec real = below(j, range.end) & ~below(j, range.first);
        store(scores + j, choose(real, exponential(load(scores + j) * scale - shift), vec{}));
    }
}

inline float largest(const float* scores, Range range, int64_t width) {
    vec most = all(-INFINITY);
    for (int64_t j = range.first / W * W; j < width; j += W) {
        const vec here = choose(below(j, range.end) & ~below(j, range.first), load(scores + j), all(-INFINITY));
        most = choose(here > most, here, most);
    }
    float found = most[0];
    for (int i = 1; i < W; i++) found = std::max(found, most[i]);
    return found;
}

// Sequence-heads, the longest first, so that threads end together.
std::vector<int64_t> in_order(const Sequences& s) {
    std::vector<int64_t> order(s.count);
    for (int64_t i = 0; i < s.count; i++) order[i] = i;
    auto cost = [&](int64_t i) {
        return int64_t(s.query_ends[i + 1] - s.query_ends[i]) * (s.key_ends[i + 1] - s.key_ends[i]);
    };
    std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return cost(a) > cost(b); });
    return order;
}

int64_t longest(const int32_t* ends, int64_t count) {
    int64_t most = 0;
    for (int64_t i = 0; i < count; i++) most = std::max<int64_t>(most, ends[i + 1] - ends[i]);
    return most;
}

}  // namespace

extern "C" {

int32_t vector_width() { return W; }

// out: [n, heads, size] contiguous; log_sums: [n, heads], the logarithm of what each query's softmax is divided by.
void attend_forward(const Sequences* sequences, const float* query, const float* key, const float* value, float* out, float* log_sums) {
    const Sequences& s = *sequences;
    const std::vector<int64_t> order = in_order(s);
    const int64_t widest = round_up(longest(s.key_ends, s.count)), out_row = s.heads * s.size;
    const Mask mask(s.seed, s.dropout);
#pragma omp parallel
    {
        std::vector<float> turned(s.size * widest), scores(BLOCK * widest);
#pragma omp for schedule(dynamic, 1)
        for (int64_t item = 0; item < s.count * s.heads; item++) {
            const int64_t i = order[item / s.heads], h = item % s.heads;
            const int64_t first = s.query_ends[i], queries = s.query_ends[i + 1] - first;
            const int64_t keys = s.key_ends[i + 1] - s.key_ends[i], width = round_up(keys);
            if (!queries) continue;
            const float* k = key + s.key_ends[i] * s.key_row + h * s.size;
            const float* v = value + s.key_ends[i] * s.value_row + h * s.size;
            transpose(k, s.key_row, keys, s.size, turned.data(), width);
            for (int64_t start = 0; start < queries; start += BLOCK) {
                const int64_t rows = std::min(BLOCK, queries - start), visible = round_up(seen(s, start + rows - 1, keys).end);
                const float* q = query + (first + start) * s.query_row + h * s.size;
                multiply(rows, visible, s.size, {q, s.query_row, 1}, turned.data(), width, scores.data(), width, false);
                for (int64_t r = 0; r < rows; r++) {
                    float* row = scores.data() + r * width;
                    const Range range = seen(s, start + r, keys);
                    const float shift = largest(row, range, visible) * s.scale;
                    exponentials(row, range, visible, s.scale, shift);
                    vec total = {};
                    for (int64_t j = 0; j < visible; j += W) total += load(row + j);
                    const float whole = sum(total);
                    log_sums[(first + start + r) * s.heads + h] = shift + std::log(whole);
                    const uint32_t line = mask.row(uint64_t(i * s.heads + h) << 32 | uint64_t(start + r));
                    for (int64_t j = 0; j < visible; j += W) {
                        const vec p = load(row + j) * (1 / whole);
                        store(row + j, s.dropout ? p * mask.factors(line, j) : p);
                    }
                }
                float* o = out + (first + start) * out_row + h * s.size;
                multiply(rows, s.size, std::min(visible, keys), {scores.data(), width, 1}, v, s.value_row, o, out_row, false);
            }
        }
    }
}

// Gradients are [n, heads, size] contiguous, as `grad`; those of keys and values must come zeroed.
void attend_backward(const Sequences* sequences, const float* query, const float* key, const float* value, const float* log_sums,
                     const float* grad, float* grad_query, float* grad_key, float* grad_value) {
    const Sequences& s = *sequences;
    const std::vector<int64_t> order = in_order(s);
    const int64_t widest = round_up(longest(s.key_ends, s.count)), out_row = s.heads * s.size;
    const Mask mask(s.seed, s.dropout);
#pragma omp parallel
    {
        std::vector<float> keys_turned(s.size * widest), values_turned(s.size * widest);
        std::vector<float> scores(BLOCK * widest), slopes(BLOCK * widest);
#pragma omp for schedule(dynamic, 1)
        for (int64_t item = 0; item < s.count * s.heads; item++) {
            const int64_t i = order[item / s.heads], h = item % s.heads;
            const int64_t first = s.query_ends[i], queries = s.query_ends[i + 1] - first;
            const int64_t keys = s.key_ends[i + 1] - s.key_ends[i], width = round_up(keys);
            if (!queries) continue;
            const float* k = key + s.key_ends[i] * s.key_row + h * s.size;
            const float* v = value + s.key_ends[i] * s.value_row + h * s.size;
            float* gk = grad_key + s.key_ends[i] * out_row + h * s.size;
            float* gv = grad_value + s.key_ends[i] * out_row + h * s.size;
            transpose(k, s.key_row, keys, s.size, keys_turned.data(), width);
            transpose(v, s.value_row, keys, s.size, values_turned.data(), width);
            for (int64_t start = 0; start < queries; start += BLOCK) {
                const int64_t rows = std::min(BLOCK, queries - start), visible = round_up(seen(s, start + rows - 1, keys).end);
                const float* q = query + (first + start) * s.query_row + h * s.size;
                const float* g = grad + (first + start) * out_row + h * s.size;
                multiply(rows, visible, s.size, {q, s.query_row, 1}, keys_turned.data(), width, scores.data(), width, false);
                multiply(rows, visible, s.size, {g, out_row, 1}, values_turned.data(), width, slopes.data(), width, false);
                for (int64_t r = 0; r < rows; r++) {  // scores become dropped-out weights, slopes the gradient of scores
                    float *row = scores.data() + r * width, *slope = slopes.data() + r * width;
                    exponentials(row, seen(s, start + r, keys), visible, s.scale, log_sums[(first + start + r) * s.heads + h]);
                    const uint32_t line = mask.row(uint64_t(i * s.heads + h) << 32 | uint64_t(start + r));
                    vec product = {};
                    for (int64_t j = 0; j < visible; j += W) {
                        const vec p = load(row + j);
                        vec d = load(slope + j);
                        if (s.dropout) {
                            // The weights themselves are needed below: kept apart by sign, as no weight is negative.
                            const vec factor = mask.factors(line, j);
                            d *= factor;
                            store(row + j, choose(factor > vec{}, p, -p));
                        }
                        store(slope + j, d);
                        product += p * d;
                    }
                    const float mean = sum(product);
                    for (int64_t j = 0; j < visible; j += W) {
                        const vec signed_p = load(row + j), p = choose(signed_p < vec{}, -signed_p, signed_p);
                        store(slope + j, p * (load(slope + j) - mean) * s.scale);
                        if (s.dropout) store(row + j, choose(signed_p < vec{}, vec{}, signed_p * mask.kept));
                    }
                }
                const int64_t reach = std::min(visible, keys);
                multiply(reach, s.size, rows, {scores.data(), 1, width}, g, out_row, gv, out_row, true);
                multiply(reach, s.size, rows, {slopes.data(), 1, width}, q, s.query_row, gk, out_row, true);
                float* gq = grad_query + (first + start) * out_row + h * s.size;
                multiply(rows, s.size, reach, {slopes.data(), width, 1}, k, s.key_row, gq, out_row, false);
            }
        }
    }
}

// out = (z - mean) x inverse x weight + shift with z = residual + dropout(hidden + bias), per row of d. `normal` keeps
// (z - mean) x inverse, `inverses` [n] the inverse standard deviations.
void add_norm_forward(int64_t n, int64_t d, const float* hidden, const float* bias, const float* residual, const float* weight,
                      const float* shift, float epsilon, double dropout, int64_t seed, float* out, float* normal, float* inverses) {
    const Mask mask(seed, dropout);
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < n; i++) {
        const float *x = hidden + i * d, *r = residual + i * d;
        float *z = normal + i * d, *y = out + i * d;
        const uint32_t line = mask.row(i);
        vec total = {};
        for (int64_t j = 0; j < d; j += W) {
            vec here = load(x + j) + load(bias + j);
            if (dropout) here *= mask.factors(line, j);
            here += load(r + j);
            store(z + j, here);
            total += here;
        }
        const float mean = sum(total) / d;
        vec squares = {};
        for (int64_t j = 0; j < d; j += W) {
            const vec off = load(z + j) - mean;
            squares += off * off;
        }
        const float inverse = 1 / std::sqrt(sum(squares) / d + epsilon);
        for (int64_t j = 0; j < d; j += W) {
            const vec here = (load(z + j) - mean) * inverse;
            store(z + j, here);
            store(y + j, here * load(weight + j) + load(shift + j));
        }
        inverses[i] = inverse;
    }
}

// sums: [PIECES, 3, d] scratch; grad_sums: [3, d] the gradients of weight, shift and bias.
void add_norm_backward(int64_t n, int64_t d, const float* grad, const float* normal, const float* inverses, const float* weight,
                       double dropout, int64_t seed, float* grad_hidden, float* grad_residual, float* sums, float* grad_sums) {
    const Mask mask(seed, dropout);
#pragma omp parallel for schedule(static)
    for (int64_t piece = 0; piece < PIECES; piece++) {
        float *of_weight = sums + piece * 3 * d, *of_shift = of_weight + d, *of_bias = of_shift + d;
        std::fill(of_weight, of_weight + 3 * d, 0.0f);
        for (int64_t i = n * piece / PIECES; i < n * (piece + 1) / PIECES; i++) {
            const float *g = grad + i * d, *z = normal + i * d;
            float *gh = grad_hidden + i * d, *gr = grad_residual + i * d;
            const uint32_t line = mask.row(i);
            vec total = {}, product = {};
            for (int64_t j = 0; j < d; j += W) {
                const vec slope = load(g + j) * load(weight + j);
                total += slope;
                product += slope * load(z + j);
            }
            const float mean = sum(total) / d, mean_product = sum(product) / d, inverse = inverses[i];
            for (int64_t j = 0; j < d; j += W) {
                const vec here = load(g + j), normal_here = load(z + j);
                const vec back = (here * load(weight + j) - mean - normal_here * mean_product) * inverse;
                const vec through = dropout ? back * mask.factors(line, j) : back;
                store(gr + j, back);
                store(gh + j, through);
                store(of_weight + j, load(of_weight + j) + here * normal_here);
                store(of_shift + j, load(of_shift + j) + here);
                store(of_bias + j, load(of_bias + j) + through);
            }
        }
    }
    for (int64_t j = 0; j < 3 * d; j++) {
        float total = 0;
        for (int64_t piece = 0; piece < PIECES; piece++) total += sums[piece * 3 * d + j];
        grad_sums[j] = total;
    }
}

}  // extern "C"

namespace {

// The normal distribution's function and density at u. erf by Abramowitz and Stegun 7.1.26 (error below 1.5e-7), whose exponential
// the density shares.
inline void normal_at(vec u, vec& below_u, vec& density) {
    const vec size = choose(u < vec{}, -u, u) * 0.70710678f;
    const vec bell = exponential(-size * size);
    const vec t = 1.0f / (1.0f + 0.3275911f * size);
    vec p = all(1.061405429f);
    for (float c : {-1.453152027f, 1.421413741f, -0.284496736f, 0.254829592f}) p = p * t + c;
    const vec tail = 0.5f * p * t * bell;
    below_u = choose(u < vec{}, tail, 1.0f - tail);
    density = 0.39894228f * bell;
}

}  // namespace

extern "C" {

// out = gelu(hidden + bias), per row of d.
void gelu_forward(int64_t n, int64_t d, const float* hidden, const float* bias, float* out) {
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < d; j += W) {
            const vec u = load(hidden + i * d + j) + load(bias + j);
            vec below_u, density;
            normal_at(u, below_u, density);
            store(out + i * d + j, u * below_u);
        }
}

// sums: [PIECES, d] scratch.
void gelu_backward(int64_t n, int64_t d, const float* grad, const float* hidden, const float* bias, float* grad_hidden, float* sums,
                   float* grad_bias) {
#pragma omp parallel for schedule(static)
    for (int64_t piece = 0; piece < PIECES; piece++) {
        float* of_bias = sums + piece * d;
        std::fill(of_bias, of_bias + d, 0.0f);
        for (int64_t i = n * piece / PIECES; i < n * (piece + 1) / PIECES; i++)
            for (int64_t j = 0; j < d; j += W) {
                const vec u = load(hidden + i * d + j) + load(bias + j);
                vec below_u, density;
                normal_at(u, below_u, density);
                const vec back = load(grad + i * d + j) * (below_u + u * density);
                store(grad_hidden + i * d + j, back);
                store(of_bias + j, load(of_bias + j) + back);
            }
    }
    for (int64_t j = 0; j < d; j++) {
        float total = 0;
        for (int64_t piece = 0; piece < PIECES; piece++) total += sums[piece * d + j];
        grad_bias[j] = total;
    }
}

// Its own backward: out = values x mask, per row of d.
void drop(int64_t n, int64_t d, const float* values, double dropout, int64_t seed, float* out) {
    const Mask mask(seed, dropout);
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < n; i++) {
        const uint32_t line = mask.row(i);
        for (int64_t j = 0; j < d; j += W) store(out + i * d + j, load(values + i * d + j) * mask.factors(line, j));
    }
}

}  // extern "C"
