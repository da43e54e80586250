// What numbered records held at one instant, kept for those that change before a snapshot has come
// by: it takes the numbers in blocks, from the first on, and an image lives until its block.
#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <span>
#include <utility>
#include <vector>

namespace freshrank {

class Preimages {
  public:
    // Of the records 0 .. n_records - 1, in blocks of a power of two of them.
    Preimages(std::uint32_t n_records, std::uint32_t image_bytes, std::uint32_t block_records)
        : n_records_(n_records),
          image_bytes_(image_bytes),
          block_bits_(static_cast<std::uint32_t>(std::countr_zero(block_records))),
          piece_images_(std::clamp(piece_bytes / image_bytes, 1U, block_records)),
          blocks_((std::uint64_t{n_records} + block_records - 1) >> block_bits_) {}

    // Record n is about to change.
    void keep(std::uint32_t n, const void* record) {
        if (std::uint8_t* image = place_for(n)) {
            std::memcpy(image, record, image_bytes_);
        }
    }
    // The same, where the image must be put together; null where nobody needs it: the record is
    // younger than the instant, its block is taken, or it is kept already.
    std::uint8_t* place_for(std::uint32_t n) {
        if (!is_wanted(n)) {
            return nullptr;
        }
        Block& block = blocks_[n >> block_bits_];
        if (block.is_kept == nullptr) {
            block.is_kept =
                std::make_unique<std::uint64_t[]>((std::size_t{1} << block_bits_) / 64 + 1);
            n_bytes_ += is_kept_bytes();
        }
        const std::uint32_t at = n - (n >> block_bits_ << block_bits_);
        const std::uint64_t bit = std::uint64_t{1} << (at % 64);
        if ((block.is_kept[at / 64] & bit) != 0) {
            return nullptr;
        }
        // Pieces of a few images, so that a block's first images are not copied for its later ones.
        if (block.n_images % piece_images_ == 0) {
            block.pieces.push_back(std::make_unique_for_overwrite<std::uint8_t[]>(
                std::size_t{piece_images_} * (sizeof at + image_bytes_)));
            n_bytes_ += piece_images_ * (sizeof at + image_bytes_);
        }
        std::uint8_t* image = image_of(block, block.n_images);
        block.is_kept[at / 64] |= bit;
        ++block.n_images;
        std::memcpy(image, &at, sizeof at);
        return image + sizeof at;
    }

    bool is_wanted(std::uint32_t n) const { return n >= first() && n < n_records_; }

    // The block to take next: its numbers are first() .. end() - 1, none when all are taken.
    std::uint32_t first() const {
        return static_cast<std::uint32_t>(
            std::min<std::uint64_t>(std::uint64_t{n_taken_} << block_bits_, n_records_));
    }
    std::uint32_t end() const {
        return static_cast<std::uint32_t>(
            std::min<std::uint64_t>(std::uint64_t{n_taken_ + 1} << block_bits_, n_records_));
    }
    bool is_done() const { return n_taken_ == blocks_.size(); }

    // visit(n, image) for every number of the block, image null for those that have not changed;
    // then forgets the block's images.
    template <class Visit>
    void take(Visit&& visit) {
        const std::uint32_t from = first();
        std::vector<const std::uint8_t*> images(end() - from);
        Block block = std::exchange(blocks_[n_taken_], Block{});
        for (std::uint32_t i = 0; i < block.n_images; ++i) {
            std::uint32_t at = 0;
            std::memcpy(&at, image_of(block, i), sizeof at);
            images[at] = image_of(block, i) + sizeof at;
        }
        for (std::uint32_t at = 0; at < images.size(); ++at) {
            visit(from + at, images[at]);
        }
        n_bytes_ -= block.pieces.size() * piece_images_ * (sizeof from + image_bytes_) +
                    (block.is_kept == nullptr ? 0 : is_kept_bytes());
        ++n_taken_;
    }

    std::uint64_t n_bytes() const { return n_bytes_ + blocks_.size() * sizeof(Block); }

  private:
    static constexpr std::uint32_t piece_bytes = 4096;

    struct Block {
        std::unique_ptr<std::uint64_t[]> is_kept;  // a bit for each number
        std::vector<std::unique_ptr<std::uint8_t[]>> pieces;
        std::uint32_t n_images = 0;
    };

    std::uint64_t is_kept_bytes() const { return (std::uint64_t{1} << block_bits_) / 8 + 8; }

    // An image stands behind its number within the block.
    std::uint8_t* image_of(Block& block, std::uint32_t i) const {
        return block.pieces[i / piece_images_].get() +
               std::size_t{i % piece_images_} * (sizeof i + image_bytes_);
    }

    std::uint32_t n_records_;
    std::uint32_t image_bytes_;
    std::uint32_t block_bits_;
    std::uint32_t piece_images_;
    std::uint32_t n_taken_ = 0;
    std::uint64_t n_bytes_ = 0;
    std::vector<Block> blocks_;
};

}  // namespace freshrank
