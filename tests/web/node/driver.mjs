// Runs what a test sends, line by line, and answers: `{"id", "code", "args"}` in, `{"id", "value"}` or `{"id", "error"}` out.
// `code` is the body of an asynchronous function of `args`, the modules and `kept`, which lasts from one to the next.
import { createInterface } from 'node:readline';

const [client, query, guide] = await Promise.all(['harbor-cluster', '@tanstack/query-core', 'harbor-cluster/guide'].map((each) => import(each)));
const kept = {};
const AsyncFunction = (async () => {}).constructor;
const say = (said) => process.stdout.write(`${JSON.stringify(said)}\n`);
process.on('unhandledRejection', (error) => say({ fault: `${error?.stack ?? error}` }));
kept.until = async (holds, what = `${holds}`) => {
  for (const end = Date.now() + 60e3; Date.now() < end; await new Promise((done) => setTimeout(done, 5))) if (await holds()) return;
  throw new Error(`it did not come to hold: ${what}`);
};
for await (const line of createInterface({ input: process.stdin })) {
  const { id, code, args } = JSON.parse(line);
  new AsyncFunction('args', 'kept', 'client', 'query', 'guide', code)(args, kept, client, query, guide).then(
    (value = null) => say({ id, value }),
    (error) => say({ id, error: `${error?.stack ?? error}` }),
  );
}
process.exit(0);
