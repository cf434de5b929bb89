// What stands between the products: norm, rotary turn, gate. Included inside the namespace of one instruction set.
//
// One pass over memory, in float32 inside. Values are rounded to the type of the tensors where separate operators
// would have stored them, so that bfloat16 models give what they were trained to give.

constexpr int64_t TASK_VALUES = 1 << 14;  // of a task: enough to outweigh handing it out

// x after it has been stored as a T and loaded again.
template <class T>
static inline F stored_as(F x) {
    if constexpr (sizeof(T) == sizeof(float)) return x;
    T memory[W];
    store_as(memory, x);
    return load_as_float(memory);
}

template <class T>
static inline F load_first(const T* p, int64_t count) {
    T memory[W] = {};
    __builtin_memcpy(memory, p, count * sizeof(T));
    return load_as_float(memory);
}
template <class T>
static inline void store_first(T* p, F x, int64_t count) {
    T memory[W];
    store_as(memory, x);
    __builtin_memcpy(p, memory, count * sizeof(T));
}

// job(first row, last row + 1) for rows of `width` values.
template <class Job>
static void for_rows(int64_t rows, int64_t width, int threads, const Job& job) {
    const int64_t together = blocks(TASK_VALUES, width);
    parallel_for(blocks(rows, together), rows * width < 2 * TASK_VALUES ? 1 : threads, [&](int64_t task) {
        job(task * together, smaller(rows, (task + 1) * together));
    });
}

template <class T>
static void norm_row(const T* x, const T* weight, T* y, int64_t width, float eps) {
    const int64_t whole = width / W * W, rest = width - whole;
    F squares[4] = {zero(), zero(), zero(), zero()};  // more than one, or each addition would wait for the last
    int64_t i = 0;
    for (; i + 4 * W <= whole; i += 4 * W)
        for (int j = 0; j < 4; ++j) {
            const F value = load_as_float(x + i + j * W);
            squares[j] = fma(value, value, squares[j]);
        }
    for (; i < whole; i += W) {
        const F value = load_as_float(x + i);
        squares[0] = fma(value, value, squares[0]);
    }
    if (rest) {
        const F value = load_first(x + whole, rest);
        squares[1] = fma(value, value, squares[1]);
    }
    const float total = sum(add(add(squares[0], squares[1]), add(squares[2], squares[3])));
    const F scale = set1(1.0f / std::sqrt(total / static_cast<float>(width) + eps));
    for (i = 0; i < whole; i += W)
        store_as(y + i, mul(load_as_float(weight + i), stored_as<T>(mul(load_as_float(x + i), scale))));
    if (rest)
        store_first(y + whole, mul(load_first(weight + whole, rest),
                                   stored_as<T>(mul(load_first(x + whole, rest), scale))), rest);
}

template <class T>
static void rms_norm_of(const Norm& n) {
    const auto *x = static_cast<const T*>(n.x), *weight = static_cast<const T*>(n.weight);
    auto* y = static_cast<T*>(n.y);
    for_rows(n.rows, n.width, n.threads, [&](int64_t row, int64_t end) {
        for (; row < end; ++row) norm_row(x + row * n.stride, weight, y + row * n.width, n.width, n.eps);
    });
}

static void rms_norm(const Norm& n) {
    if (n.dtype == FLOAT32) return rms_norm_of<float>(n);
    rms_norm_of<uint16_t>(n);
}

// One head: T the type of x, C that of the angles. Rounded at every step if they are one type, as operators on that
// type are; at the end where float32 angles widen x.
template <class T, class C>
static inline void turn_head(const T* x, const C* cosines, const C* sines, T* y, int64_t half) {
    const auto turned = [](F first, F second, F cosine, F sine, F& low, F& high) {
        low = sub(stored_as<C>(mul(first, cosine)), stored_as<C>(mul(second, sine)));
        high = add(stored_as<C>(mul(second, cosine)), stored_as<C>(mul(first, sine)));
    };
    F low, high;
    const auto at = [&](int64_t i) {
        turned(load_as_float(x + i), load_as_float(x + half + i), load_as_float(cosines + i), load_as_float(sines + i),
               low, high);
        store_as(y + i, low);
        store_as(y + half + i, high);
    };
    if (half < W) {
        turned(load_first(x, half), load_first(x + half, half), load_first(cosines, half), load_first(sines, half), low,
               high);
        store_first(y, low, half);
        return store_first(y + half, high, half);
    }
    for (int64_t i = 0; i + W <= half; i += W) at(i);
    if (half % W) at(half - W);  // some a second time: y is not x
}

template <class T, class C>
static void rotary_of(const Rotary& r) {
    const auto* x = static_cast<const T*>(r.x);
    const auto *cosines = static_cast<const C*>(r.cosines), *sines = static_cast<const C*>(r.sines);
    auto* y = static_cast<T*>(r.y);
    for_rows(r.tokens, r.heads * 2 * r.half, r.threads, [&](int64_t token, int64_t end) {
        for (; token < end; ++token)
            for (int64_t head = 0; head < r.heads; ++head)
                turn_head(x + token * r.token_stride + head * r.head_stride, cosines + token * r.half,
                          sines + token * r.half, y + (token * r.heads + head) * 2 * r.half, r.half);
    });
}

static void rotary(const Rotary& r) {
    if (r.dtype == FLOAT32) return rotary_of<float, float>(r);
    if (r.angles == FLOAT32) return rotary_of<uint16_t, float>(r);
    rotary_of<uint16_t, uint16_t>(r);
}

template <class T>
static inline F gated(F gate, F up) {
    return mul(stored_as<T>(div(gate, add(set1(1.0f), exponential(sub(zero(), gate))))), up);
}

template <class T>
static void silu_product_of(const Gate& g) {
    const auto *gate = static_cast<const T*>(g.gate), *up = static_cast<const T*>(g.up);
    auto* y = static_cast<T*>(g.y);
    for_rows(blocks(g.count, W), W, g.threads, [&](int64_t i, int64_t end) {
        for (i *= W, end = smaller(end * W, g.count); i + W <= end; i += W)
            store_as(y + i, gated<T>(load_as_float(gate + i), load_as_float(up + i)));
        if (i < end) store_first(y + i, gated<T>(load_first(gate + i, end - i), load_first(up + i, end - i)), end - i);
    });
}

static void silu_product(const Gate& g) {
    if (g.dtype == FLOAT32) return silu_product_of<float>(g);
    silu_product_of<uint16_t>(g);
}
