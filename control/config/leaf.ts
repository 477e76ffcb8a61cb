/** What schemas of a node's file are made of: leaves, each with the form its value takes and its meaning. */
import { z } from 'zod';
import { parseIp, parsePrefix, parseRange, parseSubnet, parseVtep, quote, ValueError } from '../addresses.js';

interface Leaf {
  /** What to write there, to complete "write …". */
  readonly form: string;
  /** Why a value that looks right is refused. */
  readonly why?: (value: unknown) => string | undefined;
}

/** What is known of each leaf beside its type. A key without an entry is a structure, read by `read.ts`. */
export const leaves = z.registry<Leaf>();

/** A leaf with its meaning (shown by editors) and the form its value takes (shown in remedies). */
export function leaf<S extends z.ZodType>(schema: S, form: string, meaning: string, why?: Leaf['why']): S {
  const described = schema.meta({ description: `${meaning} Write ${form}.` });
  leaves.add(described, why ? { form, why } : { form });
  return described;
}

/** Turns a value into what it stands for; a ValueError of `read` becomes a problem with its remedy. */
export function reads<S extends z.ZodType, T>(schema: S, read: (value: z.output<S>) => T) {
  return schema.transform((value, context): T => {
    try {
      return read(value);
    } catch (error) {
      if (!(error instanceof ValueError)) throw error;
      context.addIssue({ code: 'custom', message: error.message, params: { remedy: error.remedy } });
      return z.NEVER;
    }
  });
}

export const NAME_FORM = '1 to 63 letters, digits, "_", "." or "-", the first a letter or a digit';
export const name = () => z.string().regex(/^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$/);

export const integer = (least: number, most: number) => z.int().min(least).max(most);
export const between = (least: number, most: number) => `a number from ${least} to ${most}`;

export const TRUTH = 'true or false';
export const IP_FORM = 'an IPv4 or IPv6 address in text';
export const VTEP_FORM = "the unicast address of a host on the underlay, of the underlay's family";
export const ip = () => reads(z.string(), parseIp);
export const prefix = () => reads(z.string(), parsePrefix);
export const range = () => reads(z.string(), parseRange);
export const subnet = () => reads(z.string(), parseSubnet);
export const vtep = () => reads(z.string(), parseVtep);

const SECONDS: Readonly<Record<string, number>> = { '': 1, s: 1, m: 60, h: 3600 };

/** A leaf that is a time in seconds, written as a number or with a unit. */
export function duration(
  what: string,
  least: number,
  most: number,
  usual: number,
  such: string,
  meaning: string,
) {
  const form = `a duration from ${least}s to ${most}s, such as ${such}`;
  const read = (value: string | number): number => {
    const found = /^([0-9]{1,7})([smh]?)$/.exec(String(value));
    const seconds = found ? Number(found[1]) * SECONDS[found[2]] : 0;
    if (seconds < least || seconds > most) {
      const shown = typeof value === 'string' ? quote(value) : value;
      throw new ValueError(`${what} ${shown} is not a duration Weft can keep`, `write ${form}`);
    }
    return seconds;
  };
  return leaf(reads(z.union([z.number(), z.string()]), read).default(usual), form, meaning);
}
