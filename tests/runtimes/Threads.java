// SPDX-License-Identifier: LGPL-2.1-only
// A pool of threads, collections of garbage, timed waits, and exceptions; one line for each step.
import java.util.*;
import java.util.concurrent.*;
import java.util.concurrent.atomic.*;

public class Threads {
    static final int STEPS = 60, PARTS = 4;

    static long part(int seed) throws Exception {
        Map<String, List<Long>> map = new HashMap<>();
        long x = seed;
        for (int i = 0; i < 10000; i++) {
            x = x * 6364136223846793005L + 1442695040888963407L;
            map.computeIfAbsent("k" + (x >>> 50), k -> new ArrayList<>()).add(x);
        }
        long sum = 0;
        for (List<Long> values : map.values()) for (long value : values) sum = sum * 31 + value;
        long total = 0;
        for (String key : new TreeSet<>(map.keySet())) total = total * 17 + map.get(key).size();
        try {
            Object none = total == 0 ? "" : null;
            none.hashCode();
        } catch (NullPointerException expected) {
            total += 1;
        }
        return total;
    }

    public static void main(String[] args) throws Exception {
        ExecutorService pool = Executors.newFixedThreadPool(PARTS);
        ScheduledExecutorService clock = Executors.newScheduledThreadPool(1);
        AtomicLong ticks = new AtomicLong();
        Object bell = new Object();
        clock.scheduleAtFixedRate(() -> {
            ticks.incrementAndGet();
            synchronized (bell) { bell.notifyAll(); }
        }, 1, 1, TimeUnit.MILLISECONDS);
        long sum = 0;
        for (int step = 0; step < STEPS; step++) {
            List<Future<Long>> parts = new ArrayList<>();
            for (int i = 0; i < PARTS; i++) {
                int seed = step * PARTS + i + 1;
                parts.add(pool.submit(() -> part(seed)));
            }
            for (Future<Long> one : parts) sum = sum * 31 + one.get(1, TimeUnit.HOURS);
            long before = ticks.get();
            synchronized (bell) { while (ticks.get() == before) bell.wait(10000); }
            if (step % 40 == 10) System.gc();
            System.out.println(step + " " + sum);
        }
        pool.shutdown();
        clock.shutdown();
        System.out.println(pool.awaitTermination(1, TimeUnit.HOURS) && clock.awaitTermination(1, TimeUnit.HOURS));
    }
}
