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
#include <cstdlib>
#include <cstring>
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
typedef float loose __attribute__((vector_size(W * 4), aligned(4)));
typedef float quad __attribute__((vector_size(16)));

namespace {

constexpr int PIECES = 32;  // of a sum over rows
constexpr int FETCH = 16;   // rows of the next head that are fetched after each tile
constexpr float LOG2_E = 1.44269504f;

inline vec load(const float* p) { return *(const loose*)p; }
inline void store(float* p, vec v) { *(loose*)p = v; }
inline vec all(float x) { return x - vec{}; }
inline vec choose(ivec mask, vec yes, vec no) { return mask ? yes : no; }
inline int64_t round_up(int64_t n) { return (n + W - 1) / W * W; }

struct Quads {
    quad at[W / 4];
};
inline Quads quads(vec v) {
    Quads parts;
    std::memcpy(&parts, &v, sizeof v);
    return parts;
}

inline float sum(vec v) {
    const Quads parts = quads(v);
    quad total = parts.at[0];
    for (int i = 1; i < W / 4; i++) total += parts.at[i];
    return (total[0] + total[1]) + (total[2] + total[3]);
}

inline float greatest(vec v) {
    const Quads parts = quads(v);
    quad most = parts.at[0];
    for (int i = 1; i < W / 4; i++) most = parts.at[i] > most ? parts.at[i] : most;
    return std::max(std::max(most[0], most[1]), std::max(most[2], most[3]));
}

// The columns of a vector that are below `end`.
inline ivec below(int64_t first, int64_t end) {
    ivec column;
    for (int i = 0; i < W; i++) column[i] = i;
    return column < ivec{} + int32_t(end - first);
}

// 2^x, to 2 units in the last place, for x up to 127; below -126 it is 2^-126. What is not a number stays so.
inline vec power_of_two(vec x) {
    const float round = 12582912.0f + 127;  // 1.5 x 2^23 rounds to a whole number in the low bits; 127 is the exponent's bias
    x = choose(x < all(-126.0f), all(-126.0f), x);
    const vec whole = x + round, f = x - (whole - round);
    vec p = all(1.32647272e-3f);
    for (float c : {9.67151269e-3f, 5.55073374e-2f, 2.40222421e-1f, 6.93146978e-1f, 1.0f}) p = p * f + c;  // minimax
    return p * (vec)((ivec)whole << 23);
}

// ---- dropout masks from a counter

inline uint64_t mix(uint64_t x) {  // splitmix64
    x += 0x9E3779B97F4A7C15ull;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
    return x ^ (x >> 31);
}

struct Line {  // of a mask
    uint32_t plus, times;
};

// Of each row and column, a number of 32 bits: (column's + row's) x row's, with random ones of columns and rows (multiply-shift
// hashing).
struct Mask {
    uint64_t seed;
    int32_t dropped;  // an element is, when its number is below this
    vec kept;         // what a kept element is multiplied with
    std::vector<uint32_t> columns;

    Mask(int64_t seed, double rate, int64_t width)
        : seed(mix(uint64_t(seed))),
          dropped(int32_t(int64_t(std::min(rate * 4294967296.0, 4294967295.0)) - 2147483648)),
          kept(all(rate < 1 ? 1 / (1 - rate) : 0)),
          columns(rate ? round_up(width) : 0) {
        for (size_t i = 0; i < columns.size(); i++) columns[i] = mix(i);
    }

    Line row(uint64_t number) const {
        const uint64_t bits = mix(seed ^ mix(number));
        return {uint32_t(bits), uint32_t(bits >> 32) | 1};
    }

    // Factors of the W columns from `column` on.
    vec factors(Line row, int64_t column) const {
        uvec x;
        std::memcpy(&x, columns.data() + column, sizeof x);
        x = (x + row.plus) * row.times;
        return choose((ivec)x >= dropped, kept, vec{});
    }

    // Values of one column in W rows, 0 where dropped.
    ivec keeps(uvec plus, uvec times, int64_t column) const { return (ivec)((plus + columns[column]) * times) >= dropped; }
    vec keep(uvec plus, uvec times, int64_t column, vec values) const {
        const uvec x = (plus + columns[column]) * times;
        return choose((ivec)x >= dropped, values, vec{});
    }
};

// ---- what the next head needs, fetched into the second cache a little at a time while this one is computed

struct Ahead {
    struct Rows {
        const float* at;
        int64_t row, left;
    } all[8];
    int count = 0;
    int64_t size;

    void add(const float* at, int64_t row, int64_t rows) {
        if (rows) all[count++] = {at, row, rows};
    }

    void fetch() {
        if (!count) return;
        Rows& here = all[count - 1];
        const float* at = here.at;
        const int64_t rows = std::min<int64_t>(here.left, FETCH), row = here.row;
        for (int64_t r = 0; r < rows; r++, at += row)
            for (int64_t e = 0; e < size; e += 16) __builtin_prefetch(at + e, 0, 2);
        here.at = at;
        if (!(here.left -= rows)) count--;
    }
};

// ---- small matrix products: C[M, N] (+)= A[M, K] B[K, N], with rows of B and C contiguous and N a multiple of W

struct Left {  // A, read one element at a time, so that its transpose is as good
    const float* at;
    int64_t row, column;
};

template <int ROWS, int VECS>
void tile(int64_t K, Left a, const float* b, int64_t b_row, float* c, int64_t c_row, bool add) {
    vec sums[ROWS][VECS];
    const float* at[(ROWS + 2) / 3];
#pragma GCC unroll 16
    for (int i = 0; i < ROWS; i += 3) at[i / 3] = a.at + i * a.row;
#pragma GCC unroll 16
    for (int i = 0; i < ROWS; i++)
#pragma GCC unroll 16
        for (int j = 0; j < VECS; j++) sums[i][j] = vec{};
    for (int64_t k = 0; k < K; k++, b += b_row) {
        vec right[VECS];
#pragma GCC unroll 16
        for (int j = 0; j < VECS; j++) right[j] = load(b + j * W);
#pragma GCC unroll 16
        for (int i = 0; i < ROWS; i++) {
            const vec left = all(at[i / 3][i % 3 * a.row]);
#pragma GCC unroll 16
            for (int j = 0; j < VECS; j++) sums[i][j] += left * right[j];
            if (i % 3 == 2 || i == ROWS - 1) at[i / 3] += a.column;
        }
    }
    if (add) {
#pragma GCC unroll 16
        for (int i = 0; i < ROWS; i++)
#pragma GCC unroll 16
            for (int j = 0; j < VECS; j++) store(c + i * c_row + j * W, load(c + i * c_row + j * W) + sums[i][j]);
    } else {
#pragma GCC unroll 16
        for (int i = 0; i < ROWS; i++)
#pragma GCC unroll 16
            for (int j = 0; j < VECS; j++) store(c + i * c_row + j * W, sums[i][j]);
    }
}

using Tile = void (*)(int64_t, Left, const float*, int64_t, float*, int64_t, bool);

template <int VECS, int... ROWS>
void columns_of(std::integer_sequence<int, ROWS...>, int64_t M, int64_t K, Left a, const float* b, int64_t b_row, float* c,
                int64_t c_row, bool add, Ahead& ahead) {
    static constexpr Tile tiles[] = {tile<ROWS + 1, VECS>...};
    constexpr int64_t MOST = sizeof...(ROWS);
    while (M) {  // the last two of about equal size
        const int64_t rows = M >= 2 * MOST ? MOST : M > MOST ? (M + 1) / 2 : M;
        tiles[rows - 1](K, a, b, b_row, c, c_row, add);
        ahead.fetch();
        M -= rows, a.at += rows * a.row, c += rows * c_row;
    }
}

template <int VECS>
void products(int64_t M, int64_t N, int64_t K, Left a, const float* b, int64_t b_row, float* c, int64_t c_row, bool add,
              Ahead& ahead) {
    constexpr int MOST = std::min(12, (REGISTERS - VECS - 1) / VECS);  // sums, a row of B and an element of A in registers
    int64_t n = 0;
    for (; n + VECS * W <= N; n += VECS * W)
        columns_of<VECS>(std::make_integer_sequence<int, MOST>(), M, K, a, b + n, b_row, c + n, c_row, add, ahead);
    if constexpr (VECS > 1)
        if (n < N) products<VECS / 2>(M, N - n, K, a, b + n, b_row, c + n, c_row, add, ahead);
}

inline void multiply(int64_t M, int64_t N, int64_t K, Left a, const float* b, int64_t b_row, float* c, int64_t c_row, bool add,
                     Ahead& ahead) {
    products<REGISTERS == 32 ? 4 : 2>(M, N, K, a, b, b_row, c, c_row, add, ahead);
}

struct Scratch {
    float* at;
    explicit Scratch(int64_t count) : at((float*)std::aligned_alloc(64, (count * 4 + 63) / 64 * 64)) {}
    ~Scratch() { std::free(at); }
    float* data() { return at; }
    float& operator[](int64_t i) { return at[i]; }
};

// ---- attention

struct Sequences {
    int64_t count, heads, size;             // of a head
    const int32_t *query_ends, *key_ends;   // [count + 1]
    int64_t query_row, key_row, value_row;  // floats from one token to the next
    float scale;
    double dropout;
    int64_t seed;
    int32_t causal, window;  // window < 0: none
};

constexpr int64_t BLOCK = 64;  // queries at a time

inline vec shuffle(vec a, vec b, int first, int second) {  // of each four: a's first, b's first, a's second, b's second
    ivec from;
    for (int i = 0; i < W; i++) from[i] = i / 4 * 4 + (i % 4 < 2 ? first : second) + i % 2 * W;
    return __builtin_shuffle(a, b, from);
}
inline vec pairs(vec a, vec b, int first) {  // of each four: a's two from `first` on, b's two
    ivec from;
    for (int i = 0; i < W; i++) from[i] = i / 4 * 4 + first + i % 2 + (i % 4 < 2 ? 0 : W);
    return __builtin_shuffle(a, b, from);
}

// [rows, size] as [size, rows], filled up with zeros to whole vectors.
void transpose(const float* from, int64_t row, int64_t rows, int64_t size, float* to, int64_t to_row, const float* soon,
               int64_t soon_row) {
    static const float zeros[W] = {};
    alignas(64) float parts[W / 4][4][W / 4][4];
    for (int64_t j = 0; j < rows; j += W)
        for (int64_t e = 0; e < size; e += W) {
            for (int r = 0; r < W; r++) {
                __builtin_prefetch(soon + (j + r) * soon_row + e, 0, 3);
                const float* here = j + r < rows ? from + (j + r) * row + e : zeros;
                for (int c = 0; c < W / 4; c++) std::memcpy(parts[c][r % 4][r / 4], here + 4 * c, 4 * sizeof(float));
            }
            for (int c = 0; c < W / 4; c++) {
                const vec p = load(parts[c][0][0]), q = load(parts[c][1][0]), r = load(parts[c][2][0]), s = load(parts[c][3][0]);
                const vec pq = shuffle(p, q, 0, 1), rs = shuffle(r, s, 0, 1), pq2 = shuffle(p, q, 2, 3),
                          rs2 = shuffle(r, s, 2, 3);
                float* out = to + (e + 4 * c) * to_row + j;
                store(out, pairs(pq, rs, 0));
                store(out + to_row, pairs(pq, rs, 2));
                store(out + 2 * to_row, pairs(pq2, rs2, 0));
                store(out + 3 * to_row, pairs(pq2, rs2, 2));
            }
        }
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

// Which of the W queries from `query` on see the key.
inline ivec sees(const Sequences& s, int64_t query, int64_t key) {
    ivec lane;
    for (int i = 0; i < W; i++) lane[i] = i;
    const ivec ahead = int32_t(key - query) - lane;
    ivec yes = ahead == ahead;
    if (s.causal) yes &= ahead <= 0;
    if (s.window >= 0) yes &= (ahead <= s.window) & (-ahead <= s.window);
    return yes;
}

// Sequence-heads, the longest first, so that threads end together.
std::vector<int64_t> in_order(const Sequences& s) {
    std::vector<int64_t> order(s.count);
    for (int64_t i = 0; i < s.count; i++) order[i] = i;
    auto cost = [&](int64_t i) { return int64_t(s.query_ends[i + 1] - s.query_ends[i]) * (s.key_ends[i + 1] - s.key_ends[i]); };
    std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return cost(a) > cost(b); });
    return order;
}

int64_t longest(const int32_t* ends, int64_t count) {
    int64_t most = 0;
    for (int64_t i = 0; i < count; i++) most = std::max<int64_t>(most, ends[i + 1] - ends[i]);
    return most;
}

// One head of one sequence.
struct Work {
    int64_t sequence, head, query, queries, key, keys;

    Work(const Sequences& s, int64_t sequence, int64_t head)
        : sequence(sequence),
          head(head),
          query(s.query_ends[sequence]),
          queries(s.query_ends[sequence + 1] - query),
          key(s.key_ends[sequence]),
          keys(s.key_ends[sequence + 1] - key) {}
};

// Some of its queries, as many as fill whole vectors, and the keys that any of them sees.
struct Block {
    int64_t start, rows, lanes, begin, end;

    Block(const Sequences& s, const Work& work, int64_t start, int64_t step)
        : start(start),
          rows(std::min(step, work.queries - start)),
          lanes(round_up(rows)),
          begin(seen(s, start, work.keys).first),
          end(seen(s, start + rows - 1, work.keys).end) {}
};

inline int64_t step_of(const Work& work) {
    const int64_t most = work.keys > 256 ? 32 : BLOCK, blocks = (work.queries + most - 1) / most;
    return blocks ? round_up((work.queries + blocks - 1) / blocks) : 1;
}

}  // namespace

extern "C" {

int32_t vector_width() { return W; }

// out: [n, heads, size] contiguous; sums: [2, heads, n], of each query the largest score x scale and the inverse of what its
// softmax divides by, both in base 2.
void attend_forward(const Sequences* sequences, const float* query, const float* key, const float* value, float* out,
                    float* sums) {
    const Sequences& s = *sequences;
    const std::vector<int64_t> order = in_order(s);
    const int64_t n = s.query_ends[s.count], out_row = s.heads * s.size, items = s.count * s.heads,
                  most_keys = longest(s.key_ends, s.count);
    const Mask mask(s.seed, s.dropout, most_keys);
    const float scale = s.scale * LOG2_E, kept = s.dropout < 1 ? 1 / (1 - s.dropout) : 0;
    const bool partial = s.causal || s.window >= 0;
#pragma omp parallel
    {
        Scratch turned(s.size * BLOCK), scores(BLOCK * most_keys), shifts(BLOCK), inverses(BLOCK);
        alignas(64) uint32_t plus[BLOCK], times[BLOCK];
#pragma omp for schedule(dynamic, 4)
        for (int64_t item = 0; item < items; item++) {
            const Work work(s, order[item / s.heads], item % s.heads);
            Ahead ahead;
            ahead.size = s.size;
            if (item + 1 < items) {
                const Work next(s, order[(item + 1) / s.heads], (item + 1) % s.heads);
                ahead.add(query + next.query * s.query_row + next.head * s.size, s.query_row, next.queries);
                ahead.add(key + next.key * s.key_row + next.head * s.size, s.key_row, next.keys);
                ahead.add(value + next.key * s.value_row + next.head * s.size, s.value_row, next.keys);
                ahead.add(out + next.query * out_row + next.head * s.size, out_row, next.queries);
            }
            for (int64_t start = 0, step = step_of(work); start < work.queries; start += step) {
                const Block block(s, work, start, step);
                const int64_t first = work.query + start, lanes = block.lanes;
                const float* q = query + first * s.query_row + work.head * s.size;
                const float* k = key + (work.key + block.begin) * s.key_row + work.head * s.size;
                const float* v = value + (work.key + block.begin) * s.value_row + work.head * s.size;
                float* o = out + first * out_row + work.head * s.size;
                float* const table = scores.data();  // [keys, lanes]
                const int64_t keys = block.end - block.begin;
                transpose(q, s.query_row, block.rows, s.size, turned.data(), lanes, k, s.key_row);
                multiply(keys, lanes, s.size, {k, s.key_row, 1}, turned.data(), lanes, table, lanes, false, ahead);
                if (s.dropout)
                    for (int64_t r = 0; r < lanes; r++) {
                        const Line line = mask.row(uint64_t(work.sequence * s.heads + work.head) << 32 | uint64_t(start + r));
                        plus[r] = line.plus, times[r] = line.times;
                    }
                for (int64_t g = 0; g < lanes; g += W) {
                    vec most = all(-INFINITY), total = {};
                    for (int64_t j = 0; j < keys; j++) {
                        vec here = load(table + j * lanes + g);
                        if (partial) here = choose(sees(s, start + g, block.begin + j), here, all(-INFINITY));
                        most = choose(here > most, here, most);
                    }
                    const vec shift = most * scale;
                    uvec p_, t_;
                    std::memcpy(&p_, plus + g, sizeof p_), std::memcpy(&t_, times + g, sizeof t_);
                    for (int64_t j = 0; j < keys; j++) {
                        float* const here = table + j * lanes + g;
                        vec p = power_of_two(load(here) * scale - shift);
                        if (partial) p = choose(sees(s, start + g, block.begin + j), p, vec{});
                        total += p;
                        store(here, s.dropout ? mask.keep(p_, t_, block.begin + j, p) : p);
                    }
                    store(shifts.data() + g, shift);
                    store(inverses.data() + g, 1 / total);
                }
                std::memcpy(sums + work.head * n + first, shifts.data(), block.rows * sizeof(float));
                std::memcpy(sums + (s.heads + work.head) * n + first, inverses.data(), block.rows * sizeof(float));
                multiply(block.rows, s.size, keys, {table, 1, lanes}, v, s.value_row, o, out_row, false, ahead);
                for (int64_t r = 0; r < block.rows; r++)
                    for (int64_t e = 0; e < s.size; e += W)
                        store(o + r * out_row + e, load(o + r * out_row + e) * (inverses[r] * kept));
            }
        }
    }
}

// Gradients are [n, heads, size] contiguous, as `out` and `grad`.
void attend_backward(const Sequences* sequences, const float* query, const float* key, const float* value, const float* out,
                     const float* sums, const float* grad, float* grad_query, float* grad_key, float* grad_value) {
    const Sequences& s = *sequences;
    const std::vector<int64_t> order = in_order(s);
    const int64_t n = s.query_ends[s.count], out_row = s.heads * s.size, items = s.count * s.heads,
                  most_keys = longest(s.key_ends, s.count);
    const Mask mask(s.seed, s.dropout, most_keys);
    const float scale = s.scale * LOG2_E, kept = s.dropout < 1 ? 1 / (1 - s.dropout) : 0;
    const bool partial = s.causal || s.window >= 0;
#pragma omp parallel
    {
        Scratch queries_turned(s.size * BLOCK), grads_turned(s.size * BLOCK), scores(BLOCK * most_keys),
            slopes(BLOCK * most_keys);
        Scratch shifts(BLOCK), inverses(BLOCK), means(BLOCK);
        std::fill(shifts.data(), shifts.data() + BLOCK, 0), std::fill(inverses.data(), inverses.data() + BLOCK, 0),
            std::fill(means.data(), means.data() + BLOCK, 0);
        alignas(64) uint32_t plus[BLOCK], times[BLOCK];
#pragma omp for schedule(dynamic, 4)
        for (int64_t item = 0; item < items; item++) {
            const Work work(s, order[item / s.heads], item % s.heads);
            Ahead ahead;
            ahead.size = s.size;
            if (item + 1 < items) {
                const Work next(s, order[(item + 1) / s.heads], (item + 1) % s.heads);
                ahead.add(query + next.query * s.query_row + next.head * s.size, s.query_row, next.queries);
                ahead.add(key + next.key * s.key_row + next.head * s.size, s.key_row, next.keys);
                ahead.add(grad + next.query * out_row + next.head * s.size, out_row, next.queries);
                ahead.add(value + next.key * s.value_row + next.head * s.size, s.value_row, next.keys);
                ahead.add(out + next.query * out_row + next.head * s.size, out_row, next.queries);
                ahead.add(grad_value + next.key * out_row + next.head * s.size, out_row, next.keys);
                ahead.add(grad_key + next.key * out_row + next.head * s.size, out_row, next.keys);
                ahead.add(grad_query + next.query * out_row + next.head * s.size, out_row, next.queries);
            }
            if (partial || !work.queries)
                for (int64_t j = 0; j < work.keys; j++)
                    for (float* all : {grad_key, grad_value}) {
                        float* row = all + (work.key + j) * out_row + work.head * s.size;
                        std::fill(row, row + s.size, 0.0f);
                    }
            for (int64_t start = 0, step = step_of(work); start < work.queries; start += step) {
                const Block block(s, work, start, step);
                const int64_t first = work.query + start, first_key = work.key + block.begin, lanes = block.lanes,
                              keys = block.end - block.begin;
                const float* q = query + first * s.query_row + work.head * s.size;
                const float* k = key + first_key * s.key_row + work.head * s.size;
                const float* v = value + first_key * s.value_row + work.head * s.size;
                const float* g_ = grad + first * out_row + work.head * s.size;
                const float* o = out + first * out_row + work.head * s.size;
                transpose(q, s.query_row, block.rows, s.size, queries_turned.data(), lanes, k, s.key_row);
                transpose(g_, out_row, block.rows, s.size, grads_turned.data(), lanes, v, s.value_row);
                multiply(keys, lanes, s.size, {k, s.key_row, 1}, queries_turned.data(), lanes, scores.data(), lanes, false,
                         ahead);
                multiply(keys, lanes, s.size, {v, s.value_row, 1}, grads_turned.data(), lanes, slopes.data(), lanes, false,
                         ahead);
                std::memcpy(shifts.data(), sums + work.head * n + first, block.rows * sizeof(float));
                std::memcpy(inverses.data(), sums + (s.heads + work.head) * n + first, block.rows * sizeof(float));
                for (int64_t r = 0; r < block.rows; r++) {
                    vec product = {};
                    for (int64_t e = 0; e < s.size; e += W) product += load(g_ + r * out_row + e) * load(o + r * out_row + e);
                    means[r] = sum(product);
                }
                if (s.dropout)
                    for (int64_t r = 0; r < lanes; r++) {
                        const Line line = mask.row(uint64_t(work.sequence * s.heads + work.head) << 32 | uint64_t(start + r));
                        plus[r] = line.plus, times[r] = line.times;
                    }
                for (int64_t g = 0; g < lanes; g += W) {
                    const vec shift = load(shifts.data() + g), inverse = load(inverses.data() + g),
                              mean = load(means.data() + g) * inverse * s.scale;
                    const vec weight = inverse * kept, slant = weight * s.scale;
                    uvec p_, t_;
                    std::memcpy(&p_, plus + g, sizeof p_), std::memcpy(&t_, times + g, sizeof t_);
                    for (int64_t j = 0; j < keys; j++) {
                        float *here = scores.data() + j * lanes + g, *slope = slopes.data() + j * lanes + g;
                        vec p = power_of_two(load(here) * scale - shift), d = load(slope) * slant, w = p * weight;
                        if (partial) {
                            const ivec seen = sees(s, start + g, block.begin + j);
                            p = choose(seen, p, vec{}), w = choose(seen, w, vec{});
                        }
                        if (s.dropout) {
                            const ivec keeps = mask.keeps(p_, t_, block.begin + j);
                            d = choose(keeps, d, vec{}), w = choose(keeps, w, vec{});
                        }
                        store(here, w);
                        store(slope, p * (d - mean));
                    }
                }
                float* gk = grad_key + first_key * out_row + work.head * s.size;
                float* gv = grad_value + first_key * out_row + work.head * s.size;
                float* gq = grad_query + first * out_row + work.head * s.size;
                multiply(keys, s.size, block.rows, {scores.data(), lanes, 1}, g_, out_row, gv, out_row, partial || start, ahead);
                multiply(keys, s.size, block.rows, {slopes.data(), lanes, 1}, q, s.query_row, gk, out_row, partial || start,
                         ahead);
                multiply(block.rows, s.size, keys, {slopes.data(), 1, lanes}, k, s.key_row, gq, out_row, false, ahead);
            }
        }
    }
}

// out = (z - mean) x inverse x weight + shift with z = residual + dropout(hidden + bias), per row of d. `normal` keeps
// (z - mean) x inverse, `inverses` [n] the inverse standard deviations.
void add_norm_forward(int64_t n, int64_t d, const float* hidden, const float* bias, const float* residual, const float* weight,
                      const float* shift, float epsilon, double dropout, int64_t seed, float* out, float* normal,
                      float* inverses) {
    const Mask mask(seed, dropout, d);
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < n; i++) {
        const float *x = hidden + i * d, *r = residual + i * d;
        float *z = normal + i * d, *y = out + i * d;
        const Line line = mask.row(i);
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
    const Mask mask(seed, dropout, d);
#pragma omp parallel for schedule(static)
    for (int64_t piece = 0; piece < PIECES; piece++) {
        float *of_weight = sums + piece * 3 * d, *of_shift = of_weight + d, *of_bias = of_shift + d;
        std::fill(of_weight, of_weight + 3 * d, 0.0f);
        for (int64_t i = n * piece / PIECES; i < n * (piece + 1) / PIECES; i++) {
            const float *g = grad + i * d, *z = normal + i * d;
            float *gh = grad_hidden + i * d, *gr = grad_residual + i * d;
            const Line line = mask.row(i);
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

// The normal distribution's function and density at u. erf by Abramowitz and Stegun 7.1.26 (error below 1.5e-7), whose
// exponential the density shares.
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
void gelu_backward(int64_t n, int64_t d, const float* grad, const float* hidden, const float* bias, float* grad_hidden,
                   float* sums, float* grad_bias) {
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
    const Mask mask(seed, dropout, d);
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < n; i++) {
        const Line line = mask.row(i);
        for (int64_t j = 0; j < d; j += W) store(out + i * d + j, load(values + i * d + j) * mask.factors(line, j));
    }
}

}  // extern "C"
