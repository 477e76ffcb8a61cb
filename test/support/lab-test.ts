/** Tests that build a laboratory of their own; where they cannot run they are skipped, with the reason in the title. */
import { createRequire } from 'node:module';
import test, { type ExecutionContext } from 'ava';
import { Lab } from '../../cli/lab.js';

type Body = (t: ExecutionContext, lab: Lab) => Promise<void>;

function inLab(title: string, reason: string | undefined, body: Body): void {
  if (reason) {
    test.skip(`${title} [skipped: ${reason}]`, () => {});
    return;
  }
  test(title, async (t) => {
    const lab = Lab.create();
    t.teardown(() => lab.close());
    await body(t, lab);
  });
}

/** Why the optional package that sends probes is not there: it does not build on Node 24. */
function rawSocketMissing(): string | undefined {
  try {
    createRequire(import.meta.url)('raw-socket');
    return undefined;
  } catch {
    return 'the optional package raw-socket is not installed';
  }
}

/** A test that needs namespaces. */
export function live(title: string, body: Body): void {
  inLab(title, Lab.unavailable(), body);
}

/** A test that needs namespaces and sends probes. */
export function probing(title: string, body: Body): void {
  inLab(title, Lab.unavailable() ?? rawSocketMissing(), body);
}
