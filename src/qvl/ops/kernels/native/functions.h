// Functions of vectors that formulas name. Included inside the namespace of one instruction set.

// e to the power of x, good to 2e-7 of itself; 0 below -88.1, infinity from 88.4 on, NaN for NaN (the bounds stand
// first, which is the side that loses against NaN).
//
// x = n log 2 + r, so e^x = 2^n e^r with |r| < 0.35. The polynomial is the best of its degree there (relative error
// 3e-9), found by reweighted least squares.
static inline F exponential(F x) {
    x = minimum(set1(88.8f), maximum(set1(-88.1f), x));
    const F n = round_even(mul(x, set1(1.44269504f)));
    const F r = fma(n, set1(-1.42860682e-6f), fma(n, set1(-0.693145752f), x));  // log 2 in two parts
    F p = fma(set1(0.00138131f), r, set1(0.00836942f));
    p = fma(p, r, set1(0.04166846f));
    p = fma(p, r, set1(0.16666515f));
    p = fma(p, r, set1(0.49999994f));
    return mul(fma(fma(p, r, set1(1.0f)), r, set1(1.0f)), power_of_two(n));
}
