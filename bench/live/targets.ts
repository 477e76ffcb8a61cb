/** What Weft wants to reach, as ratios of medians within one run. */
import type { ContenderReport } from './run.js';
import type { Topology } from './site.js';

export interface Target {
  /** Such as `weft-uplink tcp1-ab ≥ 1 × kernel`. */
  readonly text: string;
  readonly ratio: number;
  readonly reached: boolean;
}

interface Wish {
  readonly contender: string;
  readonly metric: string;
  /** The ratio must not be below, or above for what is better small. */
  readonly bound: '≥' | '≤';
  readonly factor: number;
  readonly against: string;
  /** Metric of the other side, when it is another. */
  readonly otherMetric?: string;
  /** The factor that is hoped for beyond the one that must be. */
  readonly aim?: number;
}

const wish = (
  contender: string,
  metric: string,
  bound: '≥' | '≤',
  factor: number,
  against: string,
  extra: Pick<Wish, 'otherMetric' | 'aim'> = {},
): Wish => ({ contender, metric, bound, factor, against, ...extra });

/** The fastest of the encrypted forms. */
const ENCRYPTED = 'weft-encrypted-uplink';
const DIRECTIONS = ['ab', 'ba'] as const;

const WISHES: Readonly<Record<Topology, readonly Wish[]>> = {
  'one-host': [
    ...DIRECTIONS.map((way) => wish('weft', `tcp1-${way}`, '≥', 0.85, 'c-loop')),
    ...DIRECTIONS.map((way) => wish('weft', `tcp8-${way}`, '≥', 0.85, 'c-loop')),
    wish('weft', 'udp64', '≥', 0.85, 'c-loop'),
  ],
  'two-hosts': [
    ...DIRECTIONS.map((way) => wish('weft-uplink', `tcp1-${way}`, '≥', 1, 'kernel')),
    ...DIRECTIONS.map((way) => wish('weft-uplink', `tcp1-${way}`, '≥', 0.9, 'c-loop')),
    ...DIRECTIONS.map((way) => wish('weft-uplink', `tcp1-${way}`, '≥', 20, 'ovs')),
    ...DIRECTIONS.map((way) =>
      wish('weft-uplink', `tcp8-${way}`, '≥', 1, 'weft-uplink', { otherMetric: `tcp1-${way}` }),
    ),
    wish('weft-uplink', 'udp64', '≥', 1, 'kernel'),
    wish('weft-uplink', 'rtt-idle-p50', '≤', 1.3, 'kernel'),
    wish('weft-uplink', 'rtt-loaded-p50', '≤', 1.3, 'kernel'),
    ...DIRECTIONS.map((way) => wish('weft-socket', `tcp1-${way}`, '≥', 0.5, 'kernel')),
    // The kernel's overlay is not encrypted: what encryption may cost.
    ...DIRECTIONS.map((way) => wish(ENCRYPTED, `tcp1-${way}`, '≥', 0.5, 'kernel', { aim: 0.8 })),
    ...DIRECTIONS.map((way) => wish(ENCRYPTED, `tcp1-${way}`, '≥', 10, 'wireguard-go')),
    ...DIRECTIONS.map((way) => wish(ENCRYPTED, `tcp1-${way}`, '≥', 10, 'nebula')),
  ],
  gateway: DIRECTIONS.map((way) => wish('weft-router', `tcp1-${way}`, '≥', 0.8, 'kernel')),
};

/** The targets of a topology whose both sides were measured. */
export function reached(topology: Topology, contenders: readonly ContenderReport[]): Target[] {
  const median = (name: string, key: string): number | undefined =>
    contenders.find((contender) => contender.name === name)?.figures[key]?.median;
  return WISHES[topology].flatMap((wanted): Target[] => {
    const { contender, metric, bound, factor, against, otherMetric = metric, aim } = wanted;
    const own = median(contender, metric);
    const other = median(against, otherMetric);
    if (own === undefined || !other) return [];
    const ratio = own / other;
    const name = otherMetric === metric ? against : `its ${otherMetric}`;
    return [
      {
        text: `${contender} ${metric} ${bound} ${factor} × ${name}${aim === undefined ? '' : ` (aim: ${aim})`}`,
        ratio,
        reached: bound === '≥' ? ratio >= factor : ratio <= factor,
      },
    ];
  });
}
