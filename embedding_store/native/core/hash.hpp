// SipHash-2-4 for everything whose value is stored or sent; a 64-bit mixer for everything else.
#pragma once

#include <atomic>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <random>
#include <utility>

namespace freshrank {

static_assert(std::endian::native == std::endian::little,
              "hashes and files are little-endian; a big-endian build would need byte swaps");

struct SipKey {
    std::uint64_t k0;
    std::uint64_t k1;
};

// Second half of the key of hash_strings and mix_ids: bytes 08..0f of the key in the paper's
// test vectors, so that seed 0x0706050403020100 reproduces them.
inline constexpr std::uint64_t sip_second_half = 0x0f0e0d0c0b0a0908ULL;

class SipState {
  public:
    explicit SipState(SipKey key)
        : v0_(key.k0 ^ 0x736f6d6570736575ULL),
          v1_(key.k1 ^ 0x646f72616e646f6dULL),
          v2_(key.k0 ^ 0x6c7967656e657261ULL),
          v3_(key.k1 ^ 0x7465646279746573ULL) {}

    void compress(std::uint64_t word) {
        v3_ ^= word;
        round();
        round();
        v0_ ^= word;
    }

    std::uint64_t finish() {
        v2_ ^= 0xff;
        round();
        round();
        round();
        round();
        return v0_ ^ v1_ ^ v2_ ^ v3_;
    }

  private:
    void round() {
        v0_ += v1_;
        v1_ = std::rotl(v1_, 13) ^ v0_;
        v0_ = std::rotl(v0_, 32);
        v2_ += v3_;
        v3_ = std::rotl(v3_, 16) ^ v2_;
        v0_ += v3_;
        v3_ = std::rotl(v3_, 21) ^ v0_;
        v2_ += v1_;
        v1_ = std::rotl(v1_, 17) ^ v2_;
        v2_ = std::rotl(v2_, 32);
    }

    std::uint64_t v0_, v1_, v2_, v3_;
};

// Source: Aumasson and Bernstein, "SipHash: a fast short-input PRF", 2012, section 2.
inline std::uint64_t siphash24(const void* data, std::size_t n_bytes, SipKey key) {
    SipState state(key);
    const auto* bytes = static_cast<const unsigned char*>(data);
    const std::size_t n_words = n_bytes / 8;
    for (std::size_t i = 0; i < n_words; ++i) {
        std::uint64_t word;
        std::memcpy(&word, bytes + i * 8, 8);
        state.compress(word);
    }
    // The last word: the remaining 0..7 bytes, and the length modulo 256 in the top byte.
    std::uint64_t last = static_cast<std::uint64_t>(n_bytes) << 56;
    const std::size_t n_tail = n_bytes % 8;
    for (std::size_t i = 0; i < n_tail; ++i) {
        last |= static_cast<std::uint64_t>(bytes[n_words * 8 + i]) << (8 * i);
    }
    state.compress(last);
    return state.finish();
}

// SipHash-2-4 of bytes that come piece by piece.
class SipHasher {
  public:
    explicit SipHasher(SipKey key) : state_(key) {}

    void add(const void* data, std::size_t n_bytes) {
        const auto* bytes = static_cast<const unsigned char*>(data);
        for (; n_bytes > 0 && n_bytes_ % 8 != 0; --n_bytes) {
            add_byte(*bytes++);
        }
        SipState state = state_;  // in registers, which bytes behind a pointer cannot be part of
        for (; n_bytes >= 8; n_bytes -= 8, bytes += 8, n_bytes_ += 8) {
            std::uint64_t word;
            std::memcpy(&word, bytes, 8);
            state.compress(word);
        }
        state_ = state;
        for (; n_bytes > 0; --n_bytes) {
            add_byte(*bytes++);
        }
    }
    std::uint64_t value() const {
        SipState last = state_;
        last.compress(word_ | n_bytes_ << 56);
        return last.finish();
    }

  private:
    void add_byte(unsigned char byte) {
        word_ |= std::uint64_t{byte} << (8 * (n_bytes_ % 8));
        if (++n_bytes_ % 8 == 0) {
            state_.compress(std::exchange(word_, 0));
        }
    }

    SipState state_;
    std::uint64_t word_ = 0;  // of bytes that do not fill one yet
    std::uint64_t n_bytes_ = 0;
};

// SipHash-2-4 of the 16 bytes left | right: unrolled, no loads.
inline std::uint64_t siphash24_pair(std::uint64_t left, std::uint64_t right, SipKey key) {
    SipState state(key);
    state.compress(left);
    state.compress(right);
    state.compress(16ULL << 56);
    return state.finish();
}

// splitmix64's output function: a bijection in which every input bit reaches every output bit.
// Source: Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014.
inline constexpr std::uint64_t mix64(std::uint64_t x) {
    x += 0x9e3779b97f4a7c15ULL;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
    return x ^ (x >> 31);
}

// For IndexHash. Fresh for every table and never stored: nobody can learn it from a snapshot.
#if defined(FRESHRANK_REPEATABLE)
// In tests the same in every run, so that what failed once fails again.
inline std::atomic<std::uint64_t> n_secrets{0};
inline std::uint64_t random_secret() {
    return mix64(n_secrets++);
}
#else
inline std::uint64_t random_secret() {
    std::random_device device;
    return (std::uint64_t{device()} << 32) | device();
}
#endif

// Where a key lives in the index. Keyed, so that nobody who can choose ids can choose buckets;
// never stored, so nothing a table answers may depend on it.
class IndexHash {
  public:
    explicit IndexHash(std::uint64_t secret)
        : offset_(mix64(secret)), first_(mix64(secret + 1) | 1), second_(mix64(secret + 2) | 1) {}

    std::uint64_t operator()(std::uint64_t key) const {
        std::uint64_t x = (key ^ offset_) * first_;
        x = (x ^ (x >> 32)) * second_;
        return x ^ (x >> 29);
    }

  private:
    std::uint64_t offset_, first_, second_;
};

}  // namespace freshrank
