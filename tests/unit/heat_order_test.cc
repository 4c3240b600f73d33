#include <gtest/gtest.h>

#include <vector>

#include "heat/order.h"
#include "heat/page_ids.h"

namespace kvmem::heat {
namespace {

// An order of `pages` pages, all absent: every touch is seen.
Order absent_pages(std::size_t pages) {
  Order order;
  order.resize(pages);
  for (PageId id = 0; id < pages; ++id) order[id].state |= PageHeat::kVisible;
  return order;
}

void round(Order& order, const std::vector<PageId>& pages) {
  for (const PageId id : pages) order.touch(id);
}

std::vector<PageId> counting(PageId end) {
  std::vector<PageId> pages;
  for (PageId id = 0; id < end; ++id) pages.push_back(id);
  return pages;
}

TEST(Order, PageJustUsedIsTheFarthestAwayInARound) {
  Order order = absent_pages(100);
  for (int i = 0; i < 4; ++i) round(order, counting(100));
  round(order, counting(50));
  EXPECT_NEAR(order.cycle(), 100, 2);
  EXPECT_GT(order.next_use(49), order.next_use(25));
  EXPECT_GT(order.next_use(25), order.next_use(50));
  EXPECT_LT(order.next_use(50), 15);  // next; the interval is known to 9 %
  EXPECT_TRUE(order.validate());
}

TEST(Order, MappedPagesKeepTheirTimeUnseen) {
  Order order = absent_pages(100);
  for (int i = 0; i < 3; ++i) round(order, counting(100));
  std::vector<PageId> seen;
  for (PageId id = 0; id < 100; ++id) {
    if (id % 5 == 0) {
      seen.push_back(id);
    } else {
      order[id].state &= static_cast<std::uint8_t>(~PageHeat::kVisible);
    }
  }
  for (int i = 0; i < 5; ++i) round(order, seen);
  EXPECT_NEAR(order.cycle(), 100, 5);
  EXPECT_LT(order.age(94), 10U);
  EXPECT_FALSE(order.overdue(50));
}

TEST(Order, LearnsANewOrderInOneRound) {
  Order order = absent_pages(100);
  for (int i = 0; i < 3; ++i) round(order, counting(100));
  std::vector<PageId> other;
  for (PageId id = 0; id < 100; id += 5) {
    const PageId first = id * 7 % 100;  // runs of five, elsewhere
    for (PageId k = 0; k < 5; ++k) other.push_back((first + k) % 100);
  }
  for (int i = 0; i < 2; ++i) round(order, other);
  int next = 0;
  for (const PageId id : other) next += order.touch(id) == Order::Step::kNext;
  EXPECT_GE(next, 95);
  EXPECT_TRUE(order.validate());
}

TEST(Order, StragglersAreNotAJump) {
  Order order = absent_pages(100);
  for (int i = 0; i < 4; ++i) round(order, counting(100));
  EXPECT_EQ(order.touch(0), Order::Step::kNext);
  EXPECT_EQ(order.touch(2), Order::Step::kNext);
  EXPECT_EQ(order.touch(1), Order::Step::kLate);
  EXPECT_EQ(order.touch(3), Order::Step::kNext);
  EXPECT_GT(order.use(1), 0.9);
}

TEST(Order, RarelyUsedIsFartherThanAlwaysUsed) {
  Order order = absent_pages(100);
  for (int i = 0; i < 20; ++i) {
    std::vector<PageId> pages = counting(100);
    if (i % 4 != 0) std::erase(pages, 40U);
    round(order, pages);
  }
  EXPECT_NEAR(order.use(40), 0.3, 0.15);
  EXPECT_GT(order.next_use(40), 2 * order.next_use(41));
}

TEST(Order, UnlinkingAnyPageLeavesARing) {
  Order order = absent_pages(50);
  round(order, counting(50));
  for (PageId id = 0; id < 50; ++id) {
    order.touch(49);
    order.unlink((id * 7) % 50);
    ASSERT_TRUE(order.validate());
    if ((id * 7) % 50 == 49) break;
  }
  order.forget(0, 50);
  EXPECT_EQ(order.linked_pages(), 0U);
  EXPECT_TRUE(order.validate());
}

TEST(PageIds, GivesRangesAndTakesThemBack) {
  PageIds ids;
  EXPECT_EQ(ids.add(0, 10), 0U);
  EXPECT_EQ(ids.add(5, 20), 10U);
  EXPECT_EQ(ids.add(2, 5), 30U);
  EXPECT_EQ(ids.id({5, 19}), 29U);
  EXPECT_EQ(ids.id({5, 20}), kNoPage);
  EXPECT_EQ(ids.id({4, 0}), kNoPage);
  EXPECT_EQ(ids.page(29), (model::PageRef{5, 19}));
  EXPECT_EQ(ids.page(30), (model::PageRef{2, 0}));
  ids.remove(5);
  EXPECT_EQ(ids.add(1, 21), 35U);
  EXPECT_EQ(ids.add(5, 20), 10U);
  EXPECT_EQ(ids.end(), 56U);
}

TEST(PageIds, RefusesWhatDoesNotFit) {
  PageIds ids;
  EXPECT_EQ(ids.add(0, 0), kNoPage);
  EXPECT_EQ(ids.add(PageIds::kSlotsMax, 1), kNoPage);
  EXPECT_EQ(ids.add(0, PageIds::kPagesMax), 0U);
  EXPECT_EQ(ids.add(1, 1), kNoPage);
}

}  // namespace
}  // namespace kvmem::heat
