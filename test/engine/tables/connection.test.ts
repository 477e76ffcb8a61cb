/** The state machine of TCP, packet by packet, against RFC 6146, section 3.5.2, and where it is stricter. */
import test from 'ava';
import fc from 'fast-check';
import {
  DEFAULT_TIMEOUTS,
  ESTABLISHED,
  FIN_BOTH,
  FIN_IN,
  FIN_OUT,
  KEPT,
  MET_IN,
  MET_OUT,
  NEW_IN,
  NEW_OUT,
  nextTcpState,
  STATE_NAMES,
  SYN_BOTH,
  SYN_IN,
  SYN_OUT,
  TRANSITORY,
  TWO_SIDED,
  tcpTimeouts,
  WORTHS,
} from '../../../engine/tables/connection.js';
import { ACK, FIN, RST, SYN } from '../../support/nat.js';

/** Packets as `>flags` from inside and `<flags` from outside: S, A, F, R. */
function follow(state: number, packets: string): string[] {
  const bits: Readonly<Record<string, number>> = { S: SYN, A: ACK, F: FIN, R: RST };
  return packets.split(' ').map((one) => {
    const flags = [...one.slice(1)].reduce((sum, letter) => sum | bits[letter]!, 0);
    state = nextTcpState(state, one[0] === '<', flags << 8);
    return STATE_NAMES[state]!;
  });
}

const LIVES: readonly [title: string, from: number, packets: string, states: string][] = [
  ['a handshake from inside', SYN_OUT, '>S <SA >A <A', 'syn-sent established established established'],
  ['simultaneous open (RFC 5382, REQ-2a)', SYN_OUT, '<S >SA', 'established established'],
  ['a handshake from outside', SYN_IN, '<S >SA <A', 'syn-received syn-answered established'],
  [
    'SYNs of outside that are answered establish nothing',
    SYN_IN,
    '<S >SA >SA <S',
    'syn-received syn-answered syn-answered syn-answered',
  ],
  ['simultaneous open from outside', SYN_IN, '<S >S <SA', 'syn-received syn-answered established'],
  [
    'a reset handshake stays what it is, for its four minutes',
    SYN_OUT,
    '>S <RA >S <SA',
    'syn-sent syn-sent syn-sent established',
  ],
  ['a refused one from outside too', SYN_IN, '<S >RA', 'syn-received syn-received'],
  ['closing from inside', ESTABLISHED, '>FA <A <A <FA >A', 'fin-sent fin-sent fin-sent closing closing'],
  ['closing from outside', ESTABLISHED, '<FA >A >FA <A', 'fin-received fin-received closing closing'],
  ['FINs again change nothing', FIN_OUT, '>FA <FA <FA >FA', 'fin-sent closing closing closing'],
  ['an RST, and data that brings it back (RFC 7857, 2.2)', ESTABLISHED, '<R <A', 'transitory established'],
  ['an RST in a half-closed one', FIN_IN, '>R >A', 'transitory established'],
  ['RSTs upon an RST', ESTABLISHED, '<R <R >R', 'transitory transitory transitory'],
  [
    'a SYN behind an RST does not make it less than it was',
    ESTABLISHED,
    '<R <S >A',
    'transitory transitory established',
  ],
  [
    'a new connection over closed ports',
    FIN_BOTH,
    '>A >S <SA >A',
    'closing transitory transitory established',
  ],
  ['met in the middle from inside', MET_OUT, '>A >A <A', 'met met established'],
  ['met in the middle from outside', MET_IN, '<A <A >A', 'met-in met-in established'],
  ['met in the middle and refused', MET_IN, '<A >R <A', 'met-in met-in met-in'],
  ['met, then begun anew', MET_IN, '<S >SA <A', 'syn-received syn-answered established'],
  ['met by its FIN', MET_OUT, '>FA <FA >A', 'met met met'],
  ['a client that closes at once', SYN_BOTH, '<FA >FA', 'fin-received closing'],
  ['nonsense flags', SYN_OUT, '>SF <SF <SRFA >A', 'syn-sent syn-sent syn-sent syn-sent'],
];

for (const [title, from, packets, states] of LIVES)
  test(`RFC 6146, 3.5.2: ${title}`, (t) => t.deepEqual(follow(from, packets), states.split(' ')));

const STATES = Object.keys(STATE_NAMES).map(Number);

test('no packet leads out of the states there are, and none but of the other side establishes what was begun', (t) => {
  fc.assert(
    fc.property(
      fc.constantFrom(...STATES),
      fc.boolean(),
      fc.integer({ min: 0, max: 255 }),
      (state, inward, flags) => {
        const next = nextTcpState(state, inward, flags << 8);
        t.true(next in STATE_NAMES);
        const begun = inward ? [NEW_IN, SYN_IN, MET_IN] : [NEW_OUT, SYN_OUT, MET_OUT];
        if (begun.includes(state)) t.true(next < ESTABLISHED, `${STATE_NAMES[state]} by ${flags}`);
        if ((flags & RST) !== 0) t.true(next === state || next === TRANSITORY);
      },
    ),
    { numRuns: 2000 },
  );
});

test('RFC 5382, REQ-5: two hours and four minutes while no more than one side closed, four minutes else', (t) => {
  const seconds = tcpTimeouts(DEFAULT_TIMEOUTS);
  for (const state of [ESTABLISHED, FIN_OUT, FIN_IN]) t.is(seconds[state], 7440);
  for (const state of [SYN_IN, SYN_OUT, SYN_BOTH, MET_IN, MET_OUT, FIN_BOTH, TRANSITORY])
    t.is(seconds[state], 240);
});

test('RFC 7857, 2.1: opening and closing have timers of their own', (t) => {
  const seconds = tcpTimeouts({ ...DEFAULT_TIMEOUTS, opening: 30, closing: 60 });
  t.deepEqual(
    [seconds[SYN_OUT], seconds[SYN_BOTH], seconds[FIN_BOTH], seconds[TRANSITORY]],
    [30, 30, 60, 60],
  );
});

test('worth: from outside first, then what only began, then what ended; established never', (t) => {
  const order = [
    [NEW_IN, SYN_IN, MET_IN],
    [SYN_BOTH],
    [NEW_OUT, SYN_OUT, MET_OUT],
    [FIN_BOTH],
    [TRANSITORY],
    [TWO_SIDED],
  ];
  const worths = order.map((group) => group.map((state) => WORTHS[state]!));
  for (let i = 1; i < worths.length; i++) t.true(Math.max(...worths[i - 1]!) < Math.min(...worths[i]!));
  for (const state of [FIN_OUT, FIN_IN, ESTABLISHED]) t.is(WORTHS[state], KEPT);
});
