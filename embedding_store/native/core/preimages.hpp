// What numbered records held at one instant, kept for those that change before a snapshot has come
// by: it takes the numbers in blocks, from the first on, and an image lives until its block.
#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <new>
#include <utility>
#include <vector>

#include "memory.hpp"

namespace freshrank {

class Preimages {
  public:
    // Of the records 0 .. n_records - 1, in blocks of a power of two of them.
    Preimages(std::uint32_t n_records, std::uint32_t image_bytes, std::uint32_t block_records)
        : n_records_(n_records),
          image_bytes_(image_bytes),
          block_bits_(static_cast<std::uint32_t>(std::countr_zero(block_records))),
          piece_bytes_(sizeof no_piece + piece_images * (sizeof no_piece + image_bytes)),
          // Zeroed page by page, when they are touched: to begin takes no time.
          is_kept_(static_cast<std::uint64_t*>(std::calloc(n_words(), sizeof(std::uint64_t)))),
          blocks_((std::uint64_t{n_records} + block_records - 1) >> block_bits_),
          slab_pieces_(std::clamp<std::size_t>(slab_bytes / piece_bytes_, 1,
                                               blocks_.size() + n_records / piece_images + 1)) {
        if (is_kept_ == nullptr) {
            throw std::bad_alloc();
        }
    }

    // Record n is about to change.
    void keep(std::uint32_t n, const void* record) {
        if (std::uint8_t* image = place_for(n)) {
            std::memcpy(image, record, image_bytes_);
        }
    }
    // Whether somebody needs what record n holds: it is of the instant, its block is not taken, and
    // it is not kept yet.
    bool is_wanted(std::uint32_t n) const {
        return n < n_records_ && n >= first() && (is_kept_[n / 64] >> n % 64 & 1) == 0;
    }
    // Where to write what record n holds, before it changes; null where nobody needs it.
    std::uint8_t* place_for(std::uint32_t n) {
        if (!is_wanted(n)) {
            return nullptr;
        }
        Block& block = blocks_[n >> block_bits_];
        if (block.n_images % piece_images == 0) {
            const std::uint32_t piece = new_piece();
            std::memcpy(at(piece), &block.last_piece, sizeof piece);
            block.last_piece = piece;
        }
        std::uint8_t* image = image_of(block.last_piece, block.n_images++ % piece_images);
        is_kept_[n / 64] |= std::uint64_t{1} << n % 64;
        std::memcpy(image, &n, sizeof n);
        return image + sizeof n;
    }

    // The block to take next: its numbers are first() .. end() - 1, none when all are taken.
    std::uint32_t first() const { return bound(n_taken_); }
    std::uint32_t end() const { return bound(n_taken_ + 1); }
    bool is_done() const { return n_taken_ == blocks_.size(); }

    // visit(n, image) for every number of the block, image null for those that have not changed;
    // the images' memory then serves others.
    template <class Visit>
    void take(Visit&& visit) {
        const std::uint32_t from = first();
        std::vector<const std::uint8_t*> images(end() - from);
        const Block block = std::exchange(blocks_[n_taken_], Block{});
        std::uint32_t n_left = block.n_images;
        for (std::uint32_t piece = block.last_piece; n_left > 0;) {
            do {
                const std::uint8_t* image = image_of(piece, --n_left % piece_images);
                std::uint32_t n = 0;
                std::memcpy(&n, image, sizeof n);
                images[n - from] = image + sizeof n;
            } while (n_left % piece_images != 0);
            std::uint32_t before = no_piece;
            std::memcpy(&before, at(piece), sizeof before);
            if (n_left == 0) {
                // The block's pieces, from the last to the first, go before the free ones.
                std::memcpy(at(piece), &free_piece_, sizeof free_piece_);
                free_piece_ = block.last_piece;
            }
            piece = before;
        }
        for (std::uint32_t i = 0; i < images.size(); ++i) {
            visit(from + i, images[i]);
        }
        ++n_taken_;
    }

    std::uint64_t n_bytes() const {
        return slabs_.size() * slab_pieces_ * piece_bytes_ + n_words() * sizeof(std::uint64_t) +
               blocks_.size() * sizeof(Block);
    }

  private:
    // Pieces of a few images, so that a block's first images are not copied for its later ones, and
    // a block with one image holds little: of 8,192 records at random among ten million, most are
    // the first of their block.
    static constexpr std::uint32_t piece_images = 4;
    // Memory comes from the system in huge pages: a fault for each small one would cost as much as
    // filling it.
    static constexpr std::size_t slab_bytes = huge_page_bytes;
    static constexpr std::uint32_t no_piece = std::numeric_limits<std::uint32_t>::max();

    struct Block {
        std::uint32_t last_piece = no_piece;
        std::uint32_t n_images = 0;
    };
    struct Free {
        void operator()(std::uint64_t* words) const { std::free(words); }
    };

    std::size_t n_words() const { return n_records_ / 64 + 1; }
    std::uint32_t bound(std::uint32_t n_blocks) const {
        return static_cast<std::uint32_t>(
            std::min<std::uint64_t>(std::uint64_t{n_blocks} << block_bits_, n_records_));
    }

    // A piece is the number of the one before it, then images, each behind its record's number.
    std::uint8_t* at(std::uint32_t piece) {
        return slabs_[piece / slab_pieces_].data() + piece % slab_pieces_ * piece_bytes_;
    }
    std::uint8_t* image_of(std::uint32_t piece, std::uint32_t i) {
        return at(piece) + sizeof piece + std::size_t{i} * (sizeof i + image_bytes_);
    }
    std::uint32_t new_piece() {
        if (free_piece_ != no_piece) {
            const std::uint32_t piece = free_piece_;
            std::memcpy(&free_piece_, at(piece), sizeof free_piece_);
            return piece;
        }
        if (n_pieces_ == slabs_.size() * slab_pieces_) {
            slabs_.emplace_back(slab_pieces_ * piece_bytes_, Fill::nothing);
        }
        return n_pieces_++;
    }

    std::uint32_t n_records_;
    std::uint32_t image_bytes_;
    std::uint32_t block_bits_;
    std::size_t piece_bytes_;
    std::uint32_t n_taken_ = 0;
    std::unique_ptr<std::uint64_t[], Free> is_kept_;  // a bit for each record
    std::vector<Block> blocks_;
    std::size_t slab_pieces_;
    std::vector<AlignedArray<std::uint8_t>> slabs_;
    std::uint32_t n_pieces_ = 0;
    std::uint32_t free_piece_ = no_piece;  // each names the next
};

}  // namespace freshrank
