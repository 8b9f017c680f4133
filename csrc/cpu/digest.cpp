// A number that changes when a byte does. See ops.h.
#include <cstring>
#include <vector>

#include "cpu/isa.h"
#include "cpu/parallel.h"
#include "ops.h"

namespace backsight::cpu {
namespace {

constexpr int kLanes = 8;                // 64-bit lanes of a stripe: one vector of AVX-512
constexpr int64_t kStripe = kLanes * 8;  // bytes
constexpr int64_t kBlock = 32 * 1024;    // bytes of a block, which one thread reads
constexpr uint64_t kOdd = 0x9e3779b97f4a7c15;

uint64_t mixed(uint64_t h) {  // every bit of h to every bit
  h = (h ^ (h >> 30)) * 0xbf58476d1ce4e5b9;
  h = (h ^ (h >> 27)) * 0x94d049bb133111eb;
  return h ^ (h >> 31);
}

// The stripes of a block, as XXH3 adds them up: the product of both halves of value ^ key, and the
// value itself to the neighbour lane, so that no value is lost where a half is 0. The keys go on
// from stripe to stripe, so places count.
BACKSIGHT_CLONES void add_stripes(const char* data, int64_t stripes, uint64_t* sums) {
  uint64_t sum[kLanes], key[kLanes];
  for (int i = 0; i < kLanes; ++i) {
    sum[i] = sums[i];
    key[i] = mixed(static_cast<uint64_t>(i) + 1);
  }
  for (int64_t s = 0; s < stripes; ++s, data += kStripe) {
    uint64_t value[kLanes];
    std::memcpy(value, data, kStripe);
    for (int i = 0; i < kLanes; ++i) {
      const uint64_t met = value[i] ^ key[i];
      sum[i] += (met & 0xffffffff) * (met >> 32);
      key[i] += kOdd;
    }
    for (int i = 0; i < kLanes; ++i) sum[i] += value[i ^ 1];
  }
  for (int i = 0; i < kLanes; ++i) sums[i] = sum[i];
}

uint64_t digest_of_block(const char* data, int64_t bytes) {
  uint64_t sums[kLanes] = {};
  const int64_t stripes = bytes / kStripe, rest = bytes - stripes * kStripe;
  add_stripes(data, stripes, sums);
  if (rest > 0) {
    char last[kStripe] = {};
    std::memcpy(last, data + stripes * kStripe, static_cast<size_t>(rest));
    for (auto& sum : sums) sum = mixed(sum);
    add_stripes(last, 1, sums);
  }
  uint64_t found = static_cast<uint64_t>(bytes);
  for (const auto& sum : sums) found = mixed(found * kOdd + sum);
  return found;
}

}  // namespace

uint64_t digest(const void* data, int64_t bytes, int threads) {
  const auto* const from = static_cast<const char*>(data);
  const int64_t blocks = (bytes + kBlock - 1) / kBlock;
  std::vector<uint64_t> found(static_cast<size_t>(blocks));
  parallel_chunks(blocks, bytes, threads, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      found[static_cast<size_t>(i)] =
          digest_of_block(from + i * kBlock, i + 1 < blocks ? kBlock : bytes - i * kBlock);
  });
  uint64_t all = static_cast<uint64_t>(bytes);
  for (const auto& block : found) all = mixed(all * kOdd + block);
  return all;
}

}  // namespace backsight::cpu
