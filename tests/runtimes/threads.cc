// SPDX-License-Identifier: LGPL-2.1-only
// std::thread, condition variables with time-outs, futures, thread_local objects and exceptions; one line for each step.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <future>
#include <iostream>
#include <map>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

using namespace std::chrono_literals;
static std::atomic<unsigned> destroyed;
struct Local {
  std::string text;
  ~Local() { destroyed += text.size(); }
};
static thread_local Local local;

static uint64_t part(uint64_t seed) {
  std::map<std::string, std::unique_ptr<uint64_t>> words;
  uint64_t x = seed, sum = 0;
  for (int i = 0; i < 4000; i++) {
    x = x * 6364136223846793005u + 1442695040888963407u;
    auto &place = words["key " + std::to_string(x >> 53)];
    if (!place) place = std::make_unique<uint64_t>(i);
    else *place += i;
  }
  for (auto &[word, value] : words) sum = sum * 31 + word.size() + *value;
  try {
    if (sum) throw std::runtime_error(std::to_string(sum));
  } catch (const std::exception &e) {
    sum += std::string(e.what()).size();
  }
  return sum;
}

class Pool {
  std::mutex gate;
  std::condition_variable came;
  std::deque<std::packaged_task<uint64_t()>> tasks;
  std::vector<std::thread> threads;
  bool leave = false;

  void work() {
    for (;;) {
      std::unique_lock lock(gate);
      came.wait_for(lock, 1h, [&] { return leave || !tasks.empty(); });
      if (tasks.empty()) return;
      auto task = std::move(tasks.front());
      tasks.pop_front();
      lock.unlock();
      task();
    }
  }

 public:
  explicit Pool(int number) {
    for (int i = 0; i < number; i++) threads.emplace_back([this] { work(); });
  }
  std::future<uint64_t> submit(uint64_t seed) {
    std::packaged_task<uint64_t()> task([seed] { return part(seed); });
    auto result = task.get_future();
    std::lock_guard lock(gate);
    tasks.push_back(std::move(task));
    came.notify_one();
    return result;
  }
  ~Pool() {
    {
      std::lock_guard lock(gate);
      leave = true;
    }
    came.notify_all();
    for (auto &thread : threads) thread.join();
  }
};

int main() {
  Pool pool(4);
  std::atomic<bool> over = false;
  std::atomic<uint64_t> ticks = 0;
  std::thread clock([&] {
    while (!over) std::this_thread::sleep_for(1ms), ticks++;
  });
  uint64_t total = 0;
  for (int step = 0; step < 300; step++) {
    std::vector<std::future<uint64_t>> results;
    for (int i = 0; i < 4; i++) results.push_back(pool.submit(step * 4 + i + 1));
    for (auto &result : results) total = total * 31 + result.get();
    std::thread([] { local.text = "abc"; }).join();
    auto failed = std::async(std::launch::async, [&]() -> int { throw std::out_of_range("of " + std::to_string(step)); });
    std::string text;
    try {
      failed.get();
    } catch (const std::out_of_range &e) {
      text = e.what();
    }
    for (uint64_t before = ticks; ticks == before;) std::this_thread::yield();
    std::cout << step << ' ' << total << ' ' << text << ' ' << destroyed << std::endl;
  }
  over = true;
  clock.join();
}
