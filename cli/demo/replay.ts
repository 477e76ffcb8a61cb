/** The demo's replay: a capture of `pcaps/` through the same elements, by `weft replay` itself. */
import { fileURLToPath } from 'node:url';
import type { ReplayReport } from '../../control/replay.js';
import type { Namespace } from '../lab.js';
import { WEFT } from './engine.js';

const CHAIN = 'bridge,vxlan-encap';
/** About half a second of work, long enough for its speed to mean something. */
const FRAMES = 8_000_000;

export type ReplayFigures = Pick<
  ReplayReport,
  'frames' | 'bytes' | 'seconds' | 'mpps' | 'gbps' | 'nsPerFrame' | 'delivered' | 'drops'
> & { readonly file: string; readonly through: string };

/** One of the repository's own captures. */
const CAPTURE = 'pcaps/tcp.pcap.gz';

/** Runs in a namespace of the lab, so that it ends with it. */
export async function replayCapture(host: Namespace): Promise<ReplayFigures> {
  const file = fileURLToPath(new URL(`../../../${CAPTURE}`, import.meta.url));
  const once = await run(host, file, 1);
  const { frames, bytes, seconds, mpps, gbps, nsPerFrame, delivered, drops } = await run(
    host,
    file,
    Math.ceil(FRAMES / Math.max(1, once.frames)),
  );
  const dropped = Object.values(drops).reduce((sum, count) => sum + count, 0);
  if (frames === 0 || delivered + dropped !== frames)
    throw new Error(`of ${frames} frames ${delivered} were delivered and ${dropped} dropped`);
  const figures = { frames, bytes, seconds, mpps, gbps, nsPerFrame, delivered, drops };
  return { file: CAPTURE, through: CHAIN, ...figures };
}

async function run(host: Namespace, file: string, loops: number): Promise<ReplayReport> {
  const args = [WEFT, 'replay', file, '--through', CHAIN, '--loop', String(loops), '--json'];
  return JSON.parse(await host.run(process.execPath, args)) as ReplayReport;
}
