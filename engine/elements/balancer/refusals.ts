/** What cannot begin a flow: its sender hears why, unless it is an answer to a check of a backend. */
import type { Batch, Context, Drops } from '../../graph.js';
import { BALANCER_PORT } from '../../intent.js';
import { NO_FRAME } from '../../memory/frames.js';
import { HOST_UNREACHABLE, PORT_UNREACHABLE, UNREACHABLE } from '../../wire/icmp.js';
import type { IcmpErrors } from '../icmp-errors.js';
import { NO_SERVICE_THERE, NO_SUCH_FLOW, WITHOUT_BACKEND } from './chooser.js';
import { type Checks, isProbePort } from './relay.js';
import type { Resets } from './resets.js';

export interface RefusalOptions {
  readonly drops: Drops;
  readonly errors: IcmpErrors;
  readonly resets: Resets;
  readonly checks: Checks | undefined;
  /** Takes frames of the balancer's own, to the bridge. */
  readonly out: Batch;
  /** Called for each RST. */
  readonly reset: () => void;
}

/**
 * Refuses a frame for a reason of the balancer. `t` is the index of its TCP header's first word, 0 when it has none;
 * `virtual` is a word.
 */
export type Refuse = (frame: number, reason: number, t: number, virtual: number) => void;

export function createRefuse(context: Context, options: RefusalOptions): Refuse {
  const { u16, ingress } = context.frames;
  const { drops, errors, resets, checks, out, reset } = options;

  return (frame, reason, t, virtual) => {
    if (t !== 0 && reason === NO_SUCH_FLOW && isProbePort(u16[t + 1]) && checks?.take(frame, t)) return;
    if (t !== 0 && reason === NO_SUCH_FLOW && resets.answer(frame)) {
      reset();
      ingress[frame] = BALANCER_PORT;
      out.push(frame);
      return;
    }
    if (reason === NO_SERVICE_THERE || reason === WITHOUT_BACKEND) {
      const code = reason === NO_SERVICE_THERE ? PORT_UNREACHABLE : HOST_UNREACHABLE;
      const error = errors.make(frame, UNREACHABLE, code, 0, virtual);
      if (error !== NO_FRAME) {
        ingress[error] = BALANCER_PORT;
        out.push(error);
      }
    }
    drops.drop(frame, reason);
  };
}
