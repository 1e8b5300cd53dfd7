// What a transformer layer does beside its matrix products, on a stream of sequences without padding, in float32 on CPUs:
// attention within each sequence, dropout + residual + layer norm, bias + GELU, and dropout; forward and backward.
//
// One source for every vector width: the compiler's flags decide (AVX-512: 16 floats, AVX2: 8, others: 4). Plain C functions on
// pointers, so that nothing of PyTorch's headers is compiled; threads are those of the OpenMP that PyTorch has loaded.
//
// Results do not depend on the number of threads: dropout masks are a function of (seed, row, column), made again in backward
// instead of being stored, and sums over rows are made in a fixed number of pieces.

#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <tuple>
#include <utility>
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
typedef float vec_anywhere __attribute__((vector_size(W * 4), aligned(4)));
typedef uint32_t uvec_anywhere __attribute__((vector_size(W * 4), aligned(4)));

namespace {

constexpr int PIECES = 32;  // of a sum over rows
constexpr float LOG2_E = 1.44269504f;

inline vec load(const float* p) { return *(const vec_anywhere*)p; }
inline uvec load(const uint32_t* p) { return *(const uvec_anywhere*)p; }
inline void store(float* p, vec v) { *(vec_anywhere*)p = v; }
inline vec all(float x) { return x - vec{}; }
inline uvec all(uint32_t x) { return x - uvec{}; }
inline vec choose(ivec mask, vec yes, vec no) { return mask ? yes : no; }
inline int64_t round_up(int64_t n) { return (n + W - 1) / W * W; }

inline float sum(vec v) {
    typedef float quad __attribute__((vector_size(16)));
    quad parts[W / 4], total = {};
    std::memcpy(parts, &v, sizeof v);
    for (quad part : parts) total += part;
    return (total[0] + total[1]) + (total[2] + total[3]);
}

// 2^x, to 2 units in the last place, for x up to 127; below -126 it is 2^-126. What is not a number stays so.
inline vec power_of_two(vec x) {
    const float round = 12582912.0f + 127;  // 1.5 x 2^23 leaves a whole number in the low bits; 127 is the bias of exponents
    x = choose(x < all(-126.0f), all(-126.0f), x);
    const vec whole = x + round, f = x - (whole - round);
    vec p = all(1.32647272e-3f);  // minimax on [-1/2, 1/2], 1 at 0
    for (float c : {9.67151269e-3f, 5.55073374e-2f, 2.40222421e-1f, 6.93146978e-1f, 1.0f}) p = p * f + c;
    return p * (vec)((ivec)whole << 23);
}

// 64-byte aligned memory, not initialised.
struct Scratch {
    float* const at;
    explicit Scratch(int64_t count) : at((float*)std::aligned_alloc(64, (count * sizeof(float) + 63) / 64 * 64)) {}
    ~Scratch() { std::free(at); }
    operator float*() const { return at; }
};

// ---- dropout

inline uint64_t mix(uint64_t x) {  // splitmix64
    x += 0x9E3779B97F4A7C15ull;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
    return x ^ (x >> 31);
}

struct Keys {  // of W rows of a mask, or W times of one
    uvec plus, times;
};

// Which elements of a matrix are kept. An element's number is (its column's + its row's) x another of its row, mod 2^32, with
// random numbers of columns and rows: multiply-shift hashing, two instructions for W elements.
struct Mask {
    const bool drops;
    const float scale;    // of what is kept
    const int32_t least;  // of its numbers, with a sign
    const uint64_t seed;
    std::vector<uint32_t> columns;

    Mask(int64_t seed, double rate, int64_t width)
        : drops(rate > 0), scale(rate < 1 ? 1 / (1 - rate) : 0),
          least(std::min(std::llround(rate * 4294967296.0) - 2147483648LL, 2147483647LL)), seed(mix(seed)) {
        for (int64_t j = 0; drops && j < width; j++) columns.push_back(uint32_t(mix(j)));
    }

    std::pair<uint32_t, uint32_t> row(uint64_t number) const {
        const uint64_t bits = mix(seed ^ mix(number));
        return {uint32_t(bits), uint32_t(bits >> 32) | 1};
    }
    Keys keys(uint64_t number) const { return {all(row(number).first), all(row(number).second)}; }

    ivec keeps(Keys rows, uvec columns) const { return (ivec)((columns + rows.plus) * rows.times) >= least; }

    // W columns of one row.
    vec drop(Keys row, int64_t column, vec values) const {
        return drops ? choose(keeps(row, load(&columns[column])), values * scale, vec{}) : values;
    }
    // One column of W rows, not scaled.
    vec drop_one(Keys rows, int64_t column, vec values) const {
        return drops ? choose(keeps(rows, all(columns[column])), values, vec{}) : values;
    }
};

// ---- small matrix products: C[M, N] (+)= A[M, K] B[K, N], with rows of B and C contiguous and N a multiple of W

struct Rows {  // of a matrix
    float* at;
    int64_t row;  // floats from one to the next

    Rows from(int64_t i) const { return {at + i * row, row}; }
};

struct Left {  // A, read one element at a time, so that its transpose is as good
    const float* at;
    int64_t row, column;

    explicit Left(Rows rows) : at(rows.at), row(rows.row), column(1) {}
    static Left transposed(Rows rows) {
        Left left(rows);
        std::swap(left.row, left.column);
        return left;
    }
};

// Rows that will be needed soon, fetched into the second cache a few at a time, between other work. Hardware does not foresee
// them: a head's part of one token is far from its part of the next.
struct Ahead {
    struct Part {
        Rows rows;
        int64_t left;
    };
    const int64_t size;  // of each row
    int count = 0;
    Part parts[8] = {};

    void add(Rows rows, int64_t number) {
        if (number) parts[count++] = {rows, number};
    }

    void fetch() {
        if (!count) return;
        auto& [rows, left] = parts[count - 1];
        const int64_t few = std::min<int64_t>(left, 16);
        for (int64_t r = 0; r < few; r++, rows = rows.from(1))
            for (int64_t e = 0; e < size; e += 16) __builtin_prefetch(rows.at + e, 0, 2);
        if (!(left -= few)) count--;
    }
};

#define UNROLL _Pragma("GCC unroll 16")  // else sums would not stay in registers

// `count` times ROWS rows and VECS vectors of C.
template <int ROWS, int VECS>
void tiles(int64_t count, int64_t K, Left a, Rows b, Rows c, bool add, Ahead& ahead) {
    for (; count; count--, a.at += ROWS * a.row) {
        vec sums[ROWS][VECS];
        const float* left[(ROWS + 2) / 3];  // each third row of A: few enough for registers
        UNROLL for (int i = 0; i < ROWS; i++) {
            if (i % 3 == 0) left[i / 3] = a.at + i * a.row;
            UNROLL for (int j = 0; j < VECS; j++) sums[i][j] = vec{};
        }
        const float* right = b.at;
        for (int64_t k = 0; k < K; k++, right += b.row) {
            vec rights[VECS];
            UNROLL for (int j = 0; j < VECS; j++) rights[j] = load(right + j * W);
            UNROLL for (int i = 0; i < ROWS; i++) {
                const vec element = all(left[i / 3][i % 3 * a.row]);
                UNROLL for (int j = 0; j < VECS; j++) sums[i][j] += element * rights[j];
                if (i % 3 == 2 || i == ROWS - 1) left[i / 3] += a.column;
            }
        }
        UNROLL for (int i = 0; i < ROWS; i++, c.at += c.row)
            UNROLL for (int j = 0; j < VECS; j++) store(c.at + j * W, add ? load(c.at + j * W) + sums[i][j] : sums[i][j]);
        ahead.fetch();
    }
}

// All rows of VECS vectors of C, in tiles of about the same height.
template <int VECS, int... LESS_ONE>
void columns(std::integer_sequence<int, LESS_ONE...>, int64_t M, int64_t K, Left a, Rows b, Rows c, bool add, Ahead& ahead) {
    static constexpr decltype(&tiles<1, VECS>) of_height[] = {tiles<LESS_ONE + 1, VECS>...};
    const uint32_t rows = M, most = sizeof...(LESS_ONE), number = (rows + most - 1) / most;
    const uint32_t height = (rows + number - 1) / number, whole = rows / height, rest = rows % height;
    of_height[height - 1](whole, K, a, b, c, add, ahead);
    a.at += whole * height * a.row;
    if (rest) of_height[rest - 1](1, K, a, b, c.from(whole * height), add, ahead);
}

template <int VECS = REGISTERS == 32 ? 4 : 2>
void multiply(int64_t M, int64_t N, int64_t K, Left a, Rows b, Rows c, bool add, Ahead& ahead) {
    constexpr int ROWS = std::min(12, (REGISTERS - VECS - 1) / VECS);  // sums, a row of B and an element of A in registers
    if (!M) return;
    for (; N >= VECS * W; N -= VECS * W, b.at += VECS * W, c.at += VECS * W)
        columns<VECS>(std::make_integer_sequence<int, ROWS>(), M, K, a, b, c, add, ahead);
    if constexpr (VECS > 1)
        if (N) multiply<VECS / 2>(M, N, K, a, b, c, add, ahead);
}

// ---- attention: vectors hold W queries, so that softmax does the same to each of their elements

// Of each four elements of a and b, the two at i and i + 1: in turn (zip), or those of a and then those of b (pair).
inline vec zip(vec a, vec b, int i) {
    ivec from;
    for (int x = 0; x < W; x++) from[x] = x / 4 * 4 + i + x % 4 / 2 + x % 2 * W;
    return __builtin_shuffle(a, b, from);
}
inline vec pair(vec a, vec b, int i) {
    ivec from;
    for (int x = 0; x < W; x++) from[x] = x / 4 * 4 + i + x % 2 + x % 4 / 2 * W;
    return __builtin_shuffle(a, b, from);
}

// [number, size] as [size, number], filled up with zeros to whole vectors. `soon`: rows that will be needed right after.
void transpose(Rows from, int64_t number, int64_t size, Rows to, Rows soon) {
    static const float zeros[W] = {};
    alignas(64) float parts[W / 4][4][W / 4][4];  // column / 4, row % 4, row / 4, column % 4
    for (int64_t first = 0; first < number; first += W)
        for (int64_t e = 0; e < size; e += W) {
            for (int r = 0; r < W; r++) {
                __builtin_prefetch(soon.from(first + r).at + e);
                const float* here = first + r < number ? from.from(first + r).at + e : zeros;
                for (int c = 0; c < W / 4; c++) std::memcpy(parts[c][r % 4][r / 4], here + 4 * c, 4 * sizeof(float));
            }
            for (int c = 0; c < W / 4; c++) {
                const vec p = load(parts[c][0][0]), q = load(parts[c][1][0]), r = load(parts[c][2][0]), s = load(parts[c][3][0]);
                UNROLL for (int i = 0; i < 4; i++)
                    store(to.from(e + 4 * c + i).at + first, pair(zip(p, q, i / 2 * 2), zip(r, s, i / 2 * 2), i % 2 * 2));
            }
        }
}

// What attention is given. Rows are of tokens, [n, heads, size] with the heads side by side.
struct Attention {
    double scale, dropout;
    int64_t seed;
    int32_t causal, window;                // window < 0: none
    int64_t count, heads, size;            // of sequences; of a head
    const int32_t *query_ends, *key_ends;  // [count + 1]
    float* sums;                           // [2, heads, n]: the largest score of each query, and one over what softmax divides by
    Rows query, key, value, out, grad, grad_query, grad_key, grad_value;
};

// One head of one sequence: its first tokens, and how many.
struct Work {
    int64_t sequence, head, query, queries, key, keys;
};

int64_t longest(const int32_t* ends, int64_t count) {
    int64_t most = 0;
    for (int64_t i = 0; i < count; i++) most = std::max<int64_t>(most, ends[i + 1] - ends[i]);
    return most;
}

struct Plan : Attention {
    const int64_t n, items, most_keys;
    const float score_scale;  // to base 2
    const bool partial;       // queries do not see all keys of their sequence
    const Mask mask;
    std::vector<int64_t> order;  // the longest first, so that threads end together
    int64_t chunk;               // of heads that one thread takes: each fetches ahead for the next

    explicit Plan(const Attention& given)
        : Attention(given), n(query_ends[count]), items(count * heads), most_keys(longest(key_ends, count)),
          score_scale(scale * LOG2_E), partial(causal || window >= 0), mask(seed, dropout, most_keys), order(count),
          chunk(std::clamp<int64_t>(items / (8 * omp_get_max_threads()), 1, 4)) {
        auto cost = [&](int64_t i) { return int64_t(query_ends[i + 1] - query_ends[i]) * (key_ends[i + 1] - key_ends[i]); };
        for (int64_t i = 0; i < count; i++) order[i] = i;
        std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return cost(a) > cost(b); });
    }

    Work work(int64_t item) const {
        const int64_t i = order[item / heads];
        return {i, item % heads, query_ends[i], query_ends[i + 1] - query_ends[i], key_ends[i], key_ends[i + 1] - key_ends[i]};
    }

    Rows of(Rows tokens, int64_t head, int64_t first) const { return {tokens.from(first).at + head * size, tokens.row}; }

    // Values of one key for W queries, counted from the first of their sequence; `hidden` where a query does not see the key.
    vec hide(int64_t query, int64_t key, vec values, float hidden) const {
        if (!partial) return values;
        ivec lane;
        for (int i = 0; i < W; i++) lane[i] = i;
        const int32_t back = window < 0 ? INT32_MAX : window, front = causal ? 0 : back;
        const ivec ahead = int32_t(key - query) - lane;
        return choose((ahead <= front) & (ahead >= -back), values, all(hidden));
    }
};

constexpr int64_t BLOCK = 64;  // queries at a time: their scores stay in the first or second cache

// Some queries of a head, in whole vectors, and the keys that any of them sees; both counted from the first of their sequence.
struct Block {
    const int64_t query, queries, lanes, key, keys;
    alignas(64) uint32_t plus[BLOCK], times[BLOCK];

    Block(const Plan& s, const Work& w, int64_t first, int64_t end)
        : query(first), queries(end - first), lanes(round_up(queries)),
          key(s.window < 0 ? 0 : std::max<int64_t>(0, first - s.window)),
          keys(std::min({w.keys, s.causal ? end : w.keys, s.window < 0 ? w.keys : end + s.window}) - key) {
        for (int64_t i = 0; s.mask.drops && i < lanes; i++)
            std::tie(plus[i], times[i]) = s.mask.row(uint64_t(w.sequence * s.heads + w.head) << 32 | uint64_t(query + i));
    }

    Keys keys_of(int64_t lane) const { return {load(plus + lane), load(times + lane)}; }
};

template <class Each>
void in_blocks(const Plan& s, const Work& w, Each each) {
    const int64_t blocks = std::max<int64_t>(1, (w.queries + BLOCK - 1) / BLOCK);
    const int64_t step = round_up((w.queries + blocks - 1) / blocks);
    for (int64_t first = 0; first < w.queries; first += step) each(Block(s, w, first, std::min(first + step, w.queries)));
}

// ---- row by row

// The normal distribution's function and density at u. erf is Abramowitz and Stegun 7.1.26 (error below 1.5e-7), which has its
// exponential in common with the density.
inline void normal_at(vec u, vec& below_u, vec& density) {
    const vec size = choose(u < vec{}, -u, u) * 0.70710678f;
    const vec bell = power_of_two(-size * size * LOG2_E);
    const vec t = 1.0f / (1.0f + 0.3275911f * size);
    vec p = all(1.061405429f);
    for (float c : {-1.453152027f, 1.421413741f, -0.284496736f, 0.254829592f}) p = p * t + c;
    const vec tail = 0.5f * p * t * bell;
    below_u = choose(u < vec{}, tail, 1.0f - tail);
    density = 0.39894228f * bell;
}

// Calls `each` for n rows with an array of `width` to add to; what all have added goes into `total`.
template <class Each>
void sum_over_rows(int64_t n, int64_t width, float* total, Each each) {
    const Scratch sums(PIECES * width);
#pragma omp parallel for schedule(static)
    for (int64_t piece = 0; piece < PIECES; piece++) {
        std::fill_n(sums + piece * width, width, 0.0f);
        for (int64_t i = n * piece / PIECES; i < n * (piece + 1) / PIECES; i++) each(i, sums + piece * width);
    }
    for (int64_t j = 0; j < width; j++) {
        total[j] = 0;
        for (int64_t piece = 0; piece < PIECES; piece++) total[j] += sums[piece * width + j];
    }
}

inline void add_to(float* p, vec v) { store(p, load(p) + v); }

}  // namespace

extern "C" {

int32_t vector_width() { return W; }

void attend_forward(const Attention* given) {
    const Plan s(*given);
#pragma omp parallel
    {
        const Scratch queries(s.size * BLOCK), scores(s.most_keys * BLOCK);
        alignas(64) float most_of[BLOCK], inverse_of[BLOCK];
#pragma omp for schedule(dynamic, s.chunk)
        for (int64_t item = 0; item < s.items; item++) {
            const Work w = s.work(item), next = s.work(std::min(item + 1, s.items - 1));
            Ahead ahead{s.size};
            for (Rows rows : {s.out, s.query}) ahead.add(s.of(rows, next.head, next.query), next.queries);
            for (Rows rows : {s.value, s.key}) ahead.add(s.of(rows, next.head, next.key), next.keys);
            in_blocks(s, w, [&](const Block& b) {
                const int64_t query = w.query + b.query, key = w.key + b.key;
                const Rows q = s.of(s.query, w.head, query), o = s.of(s.out, w.head, query);
                const Rows k = s.of(s.key, w.head, key), v = s.of(s.value, w.head, key);
                const Rows turned{queries, b.lanes}, weights{scores, b.lanes};  // [size, lanes], [keys, lanes]
                transpose(q, b.queries, s.size, turned, k);
                multiply(b.keys, b.lanes, s.size, Left(k), turned, weights, false, ahead);
                for (int64_t i = 0; i < b.lanes; i += W) {
                    const Keys keys = b.keys_of(i);
                    vec most = all(-INFINITY), total = {};
                    for (int64_t j = 0; j < b.keys; j++) {
                        const vec score = s.hide(b.query + i, b.key + j, load(weights.from(j).at + i), -INFINITY);
                        most = choose(score > most, score, most);
                    }
                    for (int64_t j = 0; j < b.keys; j++) {
                        float* here = weights.from(j).at + i;
                        const vec weight = s.hide(b.query + i, b.key + j, power_of_two((load(here) - most) * s.score_scale), 0);
                        total += weight;
                        store(here, s.mask.drop_one(keys, b.key + j, weight));
                    }
                    store(most_of + i, most);
                    store(inverse_of + i, choose(total == 0, vec{}, 1 / total));
                }
                multiply(b.queries, s.size, b.keys, Left::transposed(weights), v, o, false, ahead);
                for (int64_t i = 0; i < b.queries; i++)
                    for (int64_t e = 0; e < s.size; e += W) {
                        float* here = o.from(i).at + e;
                        store(here, load(here) * (inverse_of[i] * s.mask.scale));
                    }
                std::copy_n(most_of, b.queries, s.sums + w.head * s.n + query);
                std::copy_n(inverse_of, b.queries, s.sums + (s.heads + w.head) * s.n + query);
            });
        }
    }
}

void attend_backward(const Attention* given) {
    const Plan s(*given);
#pragma omp parallel
    {
        const Scratch queries(s.size * BLOCK), grads(s.size * BLOCK), scores(s.most_keys * BLOCK), slopes(s.most_keys * BLOCK);
        alignas(64) float most_of[BLOCK] = {}, inverse_of[BLOCK] = {}, mean_of[BLOCK] = {};
#pragma omp for schedule(dynamic, s.chunk)
        for (int64_t item = 0; item < s.items; item++) {
            const Work w = s.work(item), next = s.work(std::min(item + 1, s.items - 1));
            Ahead ahead{s.size};
            for (Rows rows : {s.grad_query, s.out, s.grad, s.query}) ahead.add(s.of(rows, next.head, next.query), next.queries);
            for (Rows rows : {s.grad_key, s.grad_value, s.value, s.key}) ahead.add(s.of(rows, next.head, next.key), next.keys);
            const bool zeroed = s.partial || !w.queries;  // else the first block writes all of them
            for (Rows rows : {s.grad_key, s.grad_value})
                for (int64_t j = 0; zeroed && j < w.keys; j++) std::fill_n(s.of(rows, w.head, w.key + j).at, s.size, 0.0f);
            in_blocks(s, w, [&](const Block& b) {
                const int64_t query = w.query + b.query, key = w.key + b.key;
                const Rows q = s.of(s.query, w.head, query), o = s.of(s.out, w.head, query), g = s.of(s.grad, w.head, query);
                const Rows k = s.of(s.key, w.head, key), v = s.of(s.value, w.head, key);
                const Rows turned{queries, b.lanes}, grads_turned{grads, b.lanes};  // [size, lanes]
                const Rows weights{scores, b.lanes}, score_grads{slopes, b.lanes};  // [keys, lanes]
                transpose(q, b.queries, s.size, turned, k);
                transpose(g, b.queries, s.size, grads_turned, v);
                multiply(b.keys, b.lanes, s.size, Left(k), turned, weights, false, ahead);
                multiply(b.keys, b.lanes, s.size, Left(v), grads_turned, score_grads, false, ahead);
                std::copy_n(s.sums + w.head * s.n + query, b.queries, most_of);
                std::copy_n(s.sums + (s.heads + w.head) * s.n + query, b.queries, inverse_of);
                for (int64_t i = 0; i < b.queries; i++) {  // weights x their gradients, summed over keys
                    vec product = {};
                    for (int64_t e = 0; e < s.size; e += W) product += load(o.from(i).at + e) * load(g.from(i).at + e);
                    mean_of[i] = sum(product);
                }
                for (int64_t i = 0; i < b.lanes; i += W) {
                    const Keys keys = b.keys_of(i);
                    const vec most = load(most_of + i), inverse = load(inverse_of + i), kept = inverse * s.mask.scale;
                    const vec mean = load(mean_of + i) * inverse * float(s.scale), kept_scale = kept * float(s.scale);
                    for (int64_t j = 0; j < b.keys; j++) {
                        float *here = weights.from(j).at + i, *slope = score_grads.from(j).at + i;
                        const vec weight = s.hide(b.query + i, b.key + j, power_of_two((load(here) - most) * s.score_scale), 0);
                        store(here, s.mask.drop_one(keys, b.key + j, weight * kept));
                        store(slope, weight * (s.mask.drop_one(keys, b.key + j, load(slope) * kept_scale) - mean));
                    }
                }
                const bool add = zeroed || b.query;
                multiply(b.keys, s.size, b.queries, Left(weights), g, s.of(s.grad_value, w.head, key), add, ahead);
                multiply(b.keys, s.size, b.queries, Left(score_grads), q, s.of(s.grad_key, w.head, key), add, ahead);
                const Rows gq = s.of(s.grad_query, w.head, query);
                multiply(b.queries, s.size, b.keys, Left::transposed(score_grads), k, gq, false, ahead);
            });
        }
    }
}

// out = (z - mean) x inverse x weight + shift with z = residual + dropout(hidden + bias), per row of d. `normal` keeps
// (z - mean) x inverse, `inverses` [n] the inverse standard deviations.
void add_norm_forward(int64_t n, int64_t d, const float* hidden, const float* bias, const float* residual, const float* weight,
                      const float* shift, double epsilon, double dropout, int64_t seed, float* out, float* normal,
                      float* inverses) {
    const Mask mask(seed, dropout, d);
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < n; i++) {
        float *z = normal + i * d, *y = out + i * d;
        const Keys keys = mask.keys(i);
        vec total = {}, squares = {};
        for (int64_t j = 0; j < d; j += W) {
            const vec here = mask.drop(keys, j, load(hidden + i * d + j) + load(bias + j)) + load(residual + i * d + j);
            store(z + j, here);
            total += here;
        }
        const float mean = sum(total) / d;
        for (int64_t j = 0; j < d; j += W) {
            const vec off = load(z + j) - mean;
            squares += off * off;
        }
        const float inverse = inverses[i] = 1 / std::sqrt(sum(squares) / d + epsilon);
        for (int64_t j = 0; j < d; j += W) {
            const vec here = (load(z + j) - mean) * inverse;
            store(z + j, here);
            store(y + j, here * load(weight + j) + load(shift + j));
        }
    }
}

// grad_sums: [3, d], the gradients of weight, shift and bias.
void add_norm_backward(int64_t n, int64_t d, const float* grad, const float* normal, const float* inverses, const float* weight,
                       double dropout, int64_t seed, float* grad_hidden, float* grad_residual, float* grad_sums) {
    const Mask mask(seed, dropout, d);
    sum_over_rows(n, 3 * d, grad_sums, [&](int64_t i, float* sums) {
        const float *g = grad + i * d, *z = normal + i * d;
        const Keys keys = mask.keys(i);
        vec total = {}, product = {};
        for (int64_t j = 0; j < d; j += W) {
            const vec slope = load(g + j) * load(weight + j);
            total += slope;
            product += slope * load(z + j);
        }
        const float mean = sum(total) / d, mean_product = sum(product) / d;
        for (int64_t j = 0; j < d; j += W) {
            const vec here = load(g + j), normal_here = load(z + j);
            const vec back = (here * load(weight + j) - mean - normal_here * mean_product) * inverses[i];
            const vec through = mask.drop(keys, j, back);
            store(grad_residual + i * d + j, back);
            store(grad_hidden + i * d + j, through);
            add_to(sums + j, here * normal_here);
            add_to(sums + d + j, here);
            add_to(sums + 2 * d + j, through);
        }
    });
}

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

void gelu_backward(int64_t n, int64_t d, const float* grad, const float* hidden, const float* bias, float* grad_hidden,
                   float* grad_bias) {
    sum_over_rows(n, d, grad_bias, [&](int64_t i, float* sums) {
        for (int64_t j = 0; j < d; j += W) {
            const vec u = load(hidden + i * d + j) + load(bias + j);
            vec below_u, density;
            normal_at(u, below_u, density);
            const vec back = load(grad + i * d + j) * (below_u + u * density);
            store(grad_hidden + i * d + j, back);
            add_to(sums + j, back);
        }
    });
}

// Its own backward: out = dropout(values), per row of d.
void drop(int64_t n, int64_t d, const float* values, double dropout, int64_t seed, float* out) {
    const Mask mask(seed, dropout, d);
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < n; i++) {
        const Keys keys = mask.keys(i);
        for (int64_t j = 0; j < d; j += W) store(out + i * d + j, mask.drop(keys, j, load(values + i * d + j)));
    }
}

}  // extern "C"
