// Softmax attention over the keys and values of many sequences at once. Included inside the namespace of one
// instruction set.
//
// The query heads that share a key head are rows of one block, so no key is repeated; keys are read where the
// caches hold them. The softmax runs along the keys as they come (arXiv 1805.02867, 2205.14135): nothing as long
// as the sequence is kept. Work is cut into pieces by rows and, where those are few, by keys: partial results of
// one block are joined at the end. A piece goes the way for few rows (decoding: dot products along D, every key
// read from memory once) or for many (prompts: blocks of keys and values copied and multiplied in tiles).
//
// Row i of a key head is query i / R of the sequence and query head i % R of those that share it (R = H / G).

constexpr float HIDDEN = -1e30f;          // the score of a key that a row does not see
constexpr int64_t MOST_WIDTH = DEPTH;     // the widest head
constexpr int64_t FEW_KEYS = 48;          // keys of a block: their values wait in the nearest cache
constexpr int64_t FEW_QUERIES = 24;       // rows of a piece that go the way for few
constexpr int64_t MANY_QUERIES = 16 * TILE_ROWS;
constexpr int64_t SHORTEST_PIECE = 256;   // keys
constexpr int64_t SCORES = FEW_KEYS + 16; // from a row of scores to the next, way for few
constexpr int64_t SCALE_GROUP = GROUP;    // values of an 8-bit key that share a scale

struct Piece {
    int64_t sequence, head, first, rows;  // rows first .. first + rows of one key head
    int64_t low, high;                    // the keys that this piece looks at
    float* partial;                       // rows x (width + 2), or null where the piece sees all keys of its rows
};

// One key head of one sequence.
struct Head {
    char *keys, *values;
    uint16_t *key_scales, *value_scales;  // 8 bits only
    int64_t past;
};

static inline int64_t scale_groups(int64_t D) { return blocks(D, SCALE_GROUP); }
static inline int64_t bytes_of(Storage storage) {
    return storage == STORED_FLOAT32 ? 4 : storage == STORED_BFLOAT16 ? 2 : 1;
}

// Keys before the first query, and queries.
static inline int64_t past_of(const Attention& a, int64_t sequence) {
    const int64_t* lengths = a.lengths + sequence * 3;
    return lengths[0] + lengths[1] - lengths[2];
}
static inline int64_t queries_of(const Attention& a, int64_t sequence) { return a.lengths[sequence * 3 + 2]; }

static inline Head head_of(const Attention& a, int64_t sequence, int64_t head) {
    const int64_t* buffer = a.buffers + sequence * 5;
    const int64_t offset = head * buffer[4] * bytes_of(a.storage);
    const int64_t scales = head * (buffer[4] / a.D) * scale_groups(a.D);
    return {reinterpret_cast<char*>(buffer[0]) + offset,
            reinterpret_cast<char*>(buffer[1]) + offset,
            reinterpret_cast<uint16_t*>(buffer[2]) + scales,
            reinterpret_cast<uint16_t*>(buffer[3]) + scales,
            past_of(a, sequence)};
}

// The keys that query t may see.
static inline int64_t first_seen(const Attention& a, int64_t past, int64_t t) {
    const int64_t low = past + t + 1 - a.window;
    return a.window && low > 0 ? low : 0;
}
static inline int64_t end_seen(int64_t past, int64_t t) { return past + t + 1; }

#include "attention_store.h"

// --- what both ways share ---

static inline int64_t padded_width(int64_t D) { return rounded_up(D, PANEL * TILE_PANELS); }

// Results of the rows of a piece so far.
struct Running {
    float *out, *most, *total;
    int64_t width;
};

static inline Running fresh_running(int64_t rows, int64_t width) {
    auto* memory = static_cast<float*>(scratch(8, rows * (width + 2) * 4));
    const Running r{memory, memory + rows * width, memory + rows * (width + 1), width};
    __builtin_memset(r.out, 0, rows * width * 4);
    __builtin_memset(r.total, 0, rows * 4);
    for (int64_t i = 0; i < rows; ++i) r.most[i] = HIDDEN;
    return r;
}

// Turns the scores of row i for `count` keys, of which it sees those from a up to b, into weights, and takes them
// into account. `unit`: the scale of scores.
static inline void weigh(float* scores, int64_t count, int64_t a, int64_t b, float unit, const Running& r, int64_t i) {
    const int64_t padded = rounded_up(count, W);
    if (b <= a) {
        __builtin_memset(scores, 0, padded * 4);
        return;
    }
    for (int64_t j = 0; j < a; ++j) scores[j] = HIDDEN;
    for (int64_t j = b; j < padded; ++j) scores[j] = HIDDEN;
    F high = set1(r.most[i]);
    for (int64_t j = 0; j < padded; j += W) high = maximum(high, load(scores + j));
    const float most = largest(high);
    if (most > r.most[i]) {
        if (r.total[i] != 0) {
            const F shrink = exponential(set1((r.most[i] - most) * unit));
            float* out = r.out + i * r.width;
            for (int64_t d = 0; d < r.width; d += W) store(out + d, mul(load(out + d), shrink));
            r.total[i] *= largest(shrink);
        }
        r.most[i] = most;
    }
    F total = zero();
    const F units = set1(unit), top = set1(r.most[i]);
    for (int64_t j = 0; j < padded; j += W) {
        const F weight = exponential(mul(sub(load(scores + j), top), units));
        total = add(total, weight);
        store(scores + j, weight);
    }
    r.total[i] += sum(total);
    for (int64_t j = 0; j < a; ++j) scores[j] = 0;
    for (int64_t j = b; j < padded; ++j) scores[j] = 0;
}

// Weights for the rows of a piece and the keys from `key` on.
static inline void weigh_rows(const Attention& a, const Piece& piece, const Head& head, float* scores, int64_t stride,
                              int64_t key, int64_t count, const Running& r) {
    const int64_t R = a.H / a.G;
    for (int64_t i = 0; i < piece.rows; ++i) {
        const int64_t t = (piece.first + i) / R;
        const int64_t low = first_seen(a, head.past, t) - key, high = end_seen(head.past, t) - key;
        weigh(scores + i * stride, count, low < 0 ? 0 : smaller(low, count), high < 0 ? 0 : smaller(high, count),
              a.scale, r, i);
    }
}

static inline int64_t place_of(const Attention& a, const Piece& piece, int64_t i) {
    const int64_t R = a.H / a.G, row = piece.first + i;
    return (a.starts[piece.sequence] + row / R) * a.H + piece.head * R + row % R;
}

template <class T>
static inline void write_result(const Attention& a, const Piece& piece, int64_t i, const float* out, float total) {
    float scaled[MOST_WIDTH + W];
    const F inverse = set1(1.0f / total);
    for (int64_t d = 0; d < a.D; d += W) store(scaled + d, mul(load(out + d), inverse));
    write_row(static_cast<T*>(a.out) + place_of(a, piece, i) * a.D, scaled, static_cast<const T*>(nullptr), a.D);
}

static inline void write_results(const Attention& a, const Piece& piece, const Running& r) {
    if (piece.partial) {
        __builtin_memcpy(piece.partial, r.out, piece.rows * (r.width + 2) * 4);
        return;
    }
    for (int64_t i = 0; i < piece.rows; ++i) {
        const float* out = r.out + i * r.width;
        if (a.dtype == FLOAT32) write_result<float>(a, piece, i, out, r.total[i]);
        else write_result<uint16_t>(a, piece, i, out, r.total[i]);
    }
}

// Row i of the queries of a piece, as it came.
template <class T>
static inline const T* query(const Attention& a, const Piece& piece, int64_t i) {
    const int64_t R = a.H / a.G, row = piece.first + i;
    const auto* token = static_cast<const T*>(a.q) + (a.starts[piece.sequence] + row / R) * a.q_stride;
    return token + (piece.head * R + row % R) * a.D;
}

static inline void widen_queries(const Attention& a, const Piece& piece, float* to, int64_t padded) {
    for (int64_t i = 0; i < piece.rows; ++i) {
        if (a.dtype == FLOAT32) widen_row(to + i * padded, query<float>(a, piece, i), a.D, padded);
        else widen_row(to + i * padded, query<uint16_t>(a, piece, i), a.D, padded);
    }
}

// 8-bit keys or values as floats, `width` apart.
static inline void unpack_bytes(float* to, int64_t width, const int8_t* from, const uint16_t* scales, int64_t count,
                                int64_t D) {
    const int64_t groups = scale_groups(D);
    for (int64_t k = 0; k < count; ++k)
        for (int64_t g = 0; g < groups; ++g) {
            const float unit = bf16_value(scales[k * groups + g]);
            const int64_t first = k * D + g * SCALE_GROUP, size = smaller(SCALE_GROUP, D - g * SCALE_GROUP);
            float* out = to + k * width + g * SCALE_GROUP;
            int64_t d = 0;
            for (; d + W <= size; d += W) store(out + d, mul(load_s8(from + first + d), set1(unit)));
            for (; d < size; ++d) out[d] = from[first + d] * unit;
        }
}

// A block of keys or values, ready to be read: where they lie, or as floats in memory of the thread (8 bits, and
// heads whose width is no whole number of vectors).
template <class T>
struct InPlace {
    using Kept = T;
    using Read = T;
    static const Read* block(const Head& head, bool values, int64_t key, int64_t, int64_t D, int64_t& row) {
        row = D;
        return reinterpret_cast<const T*>(values ? head.values : head.keys) + key * D;
    }
};
template <class T>
struct Widened {
    using Kept = T;
    using Read = float;
    static const Read* block(const Head& head, bool values, int64_t key, int64_t count, int64_t D, int64_t& row) {
        row = rounded_up(D, W);
        auto* wide = static_cast<float*>(scratch(values ? 10 : 9, count * row * 4));
        const auto* from = reinterpret_cast<const T*>(values ? head.values : head.keys) + key * D;
        if constexpr (sizeof(T) == 1) {
            const auto* scales = (values ? head.value_scales : head.key_scales) + key * scale_groups(D);
            unpack_bytes(wide, row, from, scales, count, D);
        } else {
            for (int64_t k = 0; k < count; ++k) widen_row(wide + k * row, from + k * D, D, row);
        }
        return wide;
    }
};

#include "attention_few.h"
#include "attention_many.h"

// --- pieces of work ---

template <class Emit>
static void cut(const Attention& a, float* partials, const Emit& emit) {
    const int64_t R = a.H / a.G, stride = padded_width(a.D) + 2;
    int64_t total = 0;
    const auto each_block = [&](const auto& use) {
        for (int64_t n = 0; n < a.N; ++n) {
            const int64_t past = past_of(a, n), rows = queries_of(a, n) * R;
            const int64_t most = rows <= FEW_QUERIES ? FEW_QUERIES : MANY_QUERIES;
            for (int64_t first = 0; first < rows; first += most) {
                const int64_t here = smaller(most, rows - first);
                const int64_t low = first_seen(a, past, first / R);
                use(n, first, here, low, end_seen(past, (first + here - 1) / R));
            }
        }
    };
    each_block([&](int64_t, int64_t, int64_t rows, int64_t low, int64_t high) { total += a.G * rows * (high - low); });
    const int64_t share = total / (4 * a.threads) + 1;
    each_block([&](int64_t n, int64_t first, int64_t rows, int64_t low, int64_t high) {
        const int64_t keys = high - low;
        int64_t pieces = smaller(blocks(rows * keys, share), keys / SHORTEST_PIECE);
        if (pieces < 1 || a.threads == 1) pieces = 1;
        const int64_t length = rounded_up(blocks(keys, pieces), FEW_KEYS);
        for (int64_t head = 0; head < a.G; ++head)
            for (int64_t at = low; at < high; at += length) {
                const bool whole = length >= keys;
                emit(Piece{n, head, first, rows, at, smaller(high, at + length), whole ? nullptr : partials});
                if (!whole) partials += rows * stride;
            }
    });
}

// Joins the partial results of one block of rows, pieces[0 .. count - 1].
static void join(const Attention& a, const Piece* pieces, int64_t count) {
    const int64_t width = padded_width(a.D), rows = pieces->rows;
    auto* out = static_cast<float*>(scratch(8, width * 4));
    for (int64_t i = 0; i < rows; ++i) {
        const auto most = [&](int64_t p) { return pieces[p].partial[rows * width + i]; };
        float high = HIDDEN, total = 0;
        for (int64_t p = 0; p < count; ++p) high = most(p) > high ? most(p) : high;
        __builtin_memset(out, 0, width * 4);
        for (int64_t p = 0; p < count; ++p) {
            const float* partial = pieces[p].partial;
            const float weight = largest(exponential(set1((most(p) - high) * a.scale)));
            total += weight * partial[rows * (width + 1) + i];
            for (int64_t d = 0; d < width; d += W)
                store(out + d, fma(set1(weight), load(partial + i * width + d), load(out + d)));
        }
        if (a.dtype == FLOAT32) write_result<float>(a, *pieces, i, out, total);
        else write_result<uint16_t>(a, *pieces, i, out, total);
    }
}

template <class T>
static void attend_piece(const Attention& a, const Piece& piece) {
    const bool in_place = sizeof(T) > 1 && a.D % W == 0;
    if (piece.rows > FEW_QUERIES)
        return in_place ? attend_many<InPlace<T>>(a, piece) : attend_many<Widened<T>>(a, piece);
    if (!in_place) return attend_few<Widened<T>, WidenedDots<float>>(a, piece);
    if constexpr (sizeof(T) == 2)
        if (a.dtype == BFLOAT16) return attend_few<InPlace<T>, BFloatDots>(a, piece);
    attend_few<InPlace<T>, WidenedDots<T>>(a, piece);
}

static void attention(const Attention& given) {
    Attention a = given;
    (a.dtype == FLOAT32 ? store_new<float> : store_new<uint16_t>)(a);
    int64_t count = 0, floats = 0, work = 0;
    const int64_t stride = padded_width(a.D) + 2;
    auto* starts = static_cast<int64_t*>(scratch(14, a.N * 8));
    for (int64_t n = 0, at = 0; n < a.N; ++n) {
        starts[n] = at;
        at += queries_of(a, n);
    }
    a.starts = starts;
    cut(a, nullptr, [&](const Piece& p) { work += p.rows * (p.high - p.low); });
    // Less than a second thread takes to wake up.
    if (work * a.D < (1 << 19)) a.threads = 1;
    cut(a, nullptr, [&](const Piece& p) { ++count, floats += p.rows * stride; });
    auto* pieces = static_cast<Piece*>(scratch(15, (count + 1) * static_cast<int64_t>(sizeof(Piece)) + floats * 4));
    auto* partials = reinterpret_cast<float*>(pieces + count + 1);
    int64_t at = 0;
    cut(a, partials, [&](const Piece& p) { pieces[at++] = p; });
    const auto attend = a.storage == STORED_FLOAT32    ? attend_piece<float>
                        : a.storage == STORED_BFLOAT16 ? attend_piece<uint16_t>
                                                       : attend_piece<int8_t>;
    // From the end: causal rows there see most keys, and what takes long must not come last.
    parallel_for(count, a.threads, [&](int64_t i) { attend(a, pieces[count - 1 - i]); });
    for (int64_t i = 0, end; i < count; i = end) {
        const Piece& first = pieces[i];
        const auto same = [&](const Piece& p) {
            return p.sequence == first.sequence && p.head == first.head && p.first == first.first;
        };
        for (end = i + 1; end < count && same(pieces[end]);) ++end;
        if (first.partial) join(a, pieces + i, end - i);
    }
}
