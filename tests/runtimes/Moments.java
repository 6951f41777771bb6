// SPDX-License-Identifier: LGPL-2.1-only
// Waits of two seconds, each of its own kind. "ready" when they have begun, "over" when all have ended; none may be over
// before a wait of 0.7 s is, which counts no moments (epoll_wait).
import java.nio.channels.Selector;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.Executors;
import java.util.concurrent.Semaphore;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.locks.LockSupport;
import java.util.concurrent.locks.ReentrantLock;

public class Moments {
  interface Wait { void run() throws Exception; }

  static volatile boolean early;
  static final List<Thread> threads = new ArrayList<>();
  static final CountDownLatch begun = new CountDownLatch(8);

  static void begin(String name, Wait wait) {
    Thread thread = new Thread(() -> {
      try {
        begun.countDown();
        wait.run();
      } catch (Exception e) {
        fail(name + ": " + e);
      }
      if (!early) fail(name + " ended early");
    });
    threads.add(thread);
    thread.start();
  }

  static void fail(String why) {
    System.err.println(why);
    Runtime.getRuntime().halt(20);
  }

  public static void main(String[] args) throws Exception {
    Object monitor = new Object();
    ReentrantLock lock = new ReentrantLock();
    Selector selector = Selector.open();
    var scheduler = Executors.newScheduledThreadPool(1);
    var task = scheduler.schedule(() -> { if (!early) fail("the task was run early"); }, 2, TimeUnit.SECONDS);
    begin("sleep", () -> Thread.sleep(2000));
    begin("wait", () -> { synchronized (monitor) { monitor.wait(2000); } });
    begin("parkNanos", () -> LockSupport.parkNanos(2000000000L));
    begin("Condition", () -> { lock.lock(); lock.newCondition().awaitNanos(2000000000L); });
    begin("Semaphore", () -> new Semaphore(0).tryAcquire(2, TimeUnit.SECONDS));
    begin("scheduled", () -> task.get());
    begin("orTimeout", () -> new CompletableFuture<Void>().completeOnTimeout(null, 2, TimeUnit.SECONDS).get());
    begin("select", () -> { selector.select(700); early = true; });
    begun.await();
    for (Thread thread : threads)
      while (thread.getState() == Thread.State.NEW || thread.getState() == Thread.State.RUNNABLE && !thread.equals(threads.get(7)))
        Thread.yield();
    System.out.println("ready");
    for (Thread thread : threads) thread.join();
    System.out.println("over");
    System.exit(0);
  }
}
