// SPDX-License-Identifier: LGPL-2.1-only
// Worker threads, timers, promises, the thread pool (crypto, files) and shared memory; one line for each step.
const { Worker, isMainThread, parentPort, workerData } = require("worker_threads");
const crypto = require("crypto");
const fs = require("fs");

if (!isMainThread) {
  parentPort.on("message", (job) => {
    const words = new Map();
    let x = BigInt(job + 1);
    for (let i = 0; i < 3000; i++) {
      x = (x * 6364136223846793005n + 1442695040888963407n) & 0xffffffffffffffffn;
      words.set(`k${x >> 52n}`, { x, list: [i, job] });
    }
    Atomics.add(new Int32Array(workerData), 0, 1);
    let sum = 0;
    for (const [key, value] of words) sum = (sum * 31 + key.length + value.list[0]) % 1000000007;
    parentPort.postMessage({ job, sum });
  });
} else {
  const shared = new SharedArrayBuffer(4), count = new Int32Array(shared);
  const workers = [0, 1, 2].map(() => new Worker(__filename, { workerData: shared }));
  const ask = (worker, job) => new Promise((done, failed) => {
    worker.once("error", failed);
    worker.once("message", done);
    worker.postMessage(job);
  });
  const scrypt = (step) => new Promise((done, failed) =>
    crypto.scrypt(`step ${step}`, "salt", 16, { N: 1024 }, (e, key) => (e ? failed(e) : done(key.toString("hex")))));
  const later = (ms) => new Promise((done) => setTimeout(done, ms));
  let ticks = 0;
  const clock = setInterval(() => ticks++, 1);
  const main = async () => {
    for (let step = 0; step < 150; step++) {
      const answers = await Promise.all(workers.map((w, i) => ask(w, step * 3 + i)));
      const [key, text] = await Promise.all([scrypt(step), fs.promises.readFile(__filename, "utf8"), later(1)]);
      const before = ticks;
      while (ticks === before) await later(1);
      console.log(step, answers.map((a) => a.sum).join(" "), key, text.length, count[0]);
    }
    clearInterval(clock);
    for (const worker of workers) await worker.terminate();
  };
  main();
}
