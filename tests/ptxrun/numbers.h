// The numbers of a 64-bit word, and what the hardware computes of them where C++ does otherwise.
// opcodes.py fills in the atomics.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

constexpr uint64_t POISON = 0xDEADBEEFDEADBEEFull;  // a huge negative float, no valid address

template <class T> T as(uint64_t bits) {
    T value;
    memcpy(&value, &bits, sizeof value);
    return value;
}
template <class T> uint64_t raw(T value) {
    uint64_t bits = 0;
    memcpy(&bits, &value, sizeof value);
    return bits;
}

struct bfloat {
    uint16_t bits;
    bfloat() = default;
    bfloat(float value) {
        uint32_t u = raw(value);
        bits = value != value ? 0x7fff : (u + 0x7fff + (u >> 16 & 1)) >> 16;  // to nearest even
    }
    operator float() const { return as<float>(uint64_t(bits) << 16); }
};
struct flushed {  // float32 under .ftz: subnormals are zero, read and written
    float value;
    static float flush(float x) { return std::fabs(x) < 1.17549435e-38f ? copysignf(0, x) : x; }
    flushed() = default;
    flushed(float x) : value(flush(x)) {}
    operator float() const { return flush(value); }
};

template <class T> T larger(T x, T y) {  // a NaN loses, +0 beats -0
    if (x != x || y != y) return x != x ? y : x;
    return x == y ? (std::signbit(x) ? y : x) : (x > y ? x : y);
}
template <class T> T smaller(T x, T y) { return -larger<T>(-x, -y); }
template <class T> T nan_or(T x, T y, T otherwise) { return x != x || y != y ? T(NAN) : otherwise; }
float full_division(float x, float y) {  // x * (1 / y), as the hardware's div.full: within 2 ulp
    const float size = std::fabs(y);
    if (!(size > 1.2e-38f) || std::isinf(y) || !std::isfinite(x)) return x / y;
    return size > 8.5e37f ? (x * 0.25f) * (1 / (y * 0.25f)) : x * (1 / y);
}
uint64_t gross_reciprocal(uint64_t x) {  // sign, exponent and 20 bits in, the same out
    const uint64_t upper = ~0ull << 32;
    const double y = 1.0 / as<double>(x & upper);
    return y != y || std::fabs(y) >= 2.2250738585072014e-308 ? raw(y) & upper : raw(copysign(0.0, y));
}
template <class T> T saturate(double x, bool nan_is_zero) {
    using limits = std::numeric_limits<T>;
    if (x != x) return nan_is_zero ? 0 : T(uint64_t(1) << (8 * sizeof(T) - 1));
    if (x >= std::ldexp(1.0, limits::digits)) return limits::max();
    return x <= double(limits::min()) ? limits::min() : T(x);
}
template <class T> T quotient(T x, T y) {  // the hardware's all ones for x / 0, and no trap
    return y == 0 ? T(~T(0)) : std::is_signed<T>::value && y == T(-1) ? T(0) - x : x / y;
}
template <class T> T remainder_of(T x, T y) {
    return y == 0 ? x : std::is_signed<T>::value && y == T(-1) ? T(0) : x % y;
}
template <class T> T bit_field(T x, uint64_t from, uint64_t count) {
    const int bits = 8 * sizeof(T), start = from & 255, length = count & 255;
    if (length == 0) return 0;
    const bool all_out = start >= bits && !std::is_signed<T>::value;
    const T shifted = x >> std::min(start, bits - 1) >> all_out;
    if (length >= bits) return shifted;
    const int drop = bits - length;
    return T(typename std::make_unsigned<T>::type(shifted) << drop) >> drop;
}
uint32_t permute(uint32_t x, uint32_t y, uint32_t selectors) {
    const uint64_t bytes = uint64_t(y) << 32 | x;
    uint32_t result = 0;
    for (int i = 0; i < 4; i++) {
        const uint32_t selector = selectors >> 4 * i & 15;
        uint8_t byte = bytes >> 8 * (selector & 7);
        if (selector & 8) byte = byte & 0x80 ? 0xff : 0;  // the sign, replicated
        result |= uint32_t(byte) << 8 * i;
    }
    return result;
}

uint64_t atomically(int operation, uint64_t a, uint64_t b, uint64_t c) {
    switch (operation) {
/*ATOMICS*/
    }
    return POISON;
}
