// Runs jobs with graphile-worker or pg-boss, for benches/workers/main.rs.
//
//     node others.mjs SYSTEM WORKERS BATCH
//
// Each line "N" of the input adds N jobs, and writes "ready". The next line starts the workers. When all jobs
// are done, it writes "done". The end of the input ends the program. This version of graphile-worker fetches
// one job at a time, whatever BATCH is.

import { createInterface } from "node:readline";
import pg from "pg";

const [system, workers, batch] = [process.argv[2], Number(process.argv[3]), Number(process.argv[4])];
const pool = new pg.Pool({ max: workers + 2 });

// Each system: how to prepare the database, how to add jobs, and how to run them until none is left.
const systems = {
    async "graphile-worker"() {
        const { run, runMigrations } = await import("graphile-worker");
        const { Logger } = await import("graphile-worker");
        const logger = new Logger(() => () => {});
        await runMigrations({ pgPool: pool, logger });
        return {
            async add(count) {
                await pool.query(
                    `SELECT graphile_worker.add_jobs(array_agg(row('task', '{}', NULL, NULL, NULL, NULL, NULL, NULL)::graphile_worker.job_spec))
                     FROM generate_series(1, $1::int)`,
                    [count],
                );
            },
            async drain(count) {
                let done = 0;
                let finish;
                const all = new Promise((resolve) => { finish = resolve; });
                const taskList = { task: async () => { if (++done === count) finish(); } };
                const runner = await run({
                    pgPool: pool, logger, concurrency: workers, taskList, noHandleSignals: true, pollInterval: 100,
                });
                await all;
                // A job counts as done when its row is gone.
                while ((await pool.query("SELECT FROM graphile_worker._private_jobs LIMIT 1")).rowCount > 0) {
                    await new Promise((resolve) => setTimeout(resolve, 1));
                }
                return () => runner.stop();
            },
        };
    },
    async "pg-boss"() {
        const { default: PgBoss } = await import("pg-boss");
        const boss = new PgBoss({
            db: { executeSql: (text, values) => pool.query(text, values) },
            supervise: false, schedule: false,
        });
        await boss.start();
        await boss.createQueue("task");
        return {
            async add(count) {
                for (let left = count; left > 0; left -= 1000) {
                    await boss.insert(Array.from({ length: Math.min(left, 1000) }, () => ({ name: "task", data: {} })));
                }
            },
            async drain() {
                await Promise.all(Array.from({ length: workers }, async () => {
                    for (;;) {
                        const jobs = await boss.fetch("task", { batchSize: batch });
                        if (jobs.length === 0) break;
                        // Each handler ends by itself.
                        for (const job of jobs) await boss.complete("task", job.id);
                    }
                }));
                return async () => {};
            },
        };
    },
};

const { add, drain } = await systems[system]();
let count = 0;
let stop = async () => {};
for await (const line of createInterface({ input: process.stdin })) {
    if (count === 0) {
        count = Number(line);
        await stop();
        await add(count);
        await pool.query("ANALYZE");
        console.log("ready");
    } else {
        stop = await drain(count);
        count = 0;
        console.log("done");
    }
}
process.exit(0);
