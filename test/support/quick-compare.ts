/**
 * Loaded by ava before each test file: equal values are found equal by Node, and only what differs goes the way of
 * ava's comparison, which lists every byte of a typed array by its name: 2 ms for a frame, most of the time of
 * many a test of elements.
 */
import { createRequire } from 'node:module';
import { isDeepStrictEqual } from 'node:util';

type Compare = (actual: unknown, expected: unknown, options: unknown) => { readonly pass: boolean };

const ava = createRequire(import.meta.url).resolve('ava');
const concordance = createRequire(ava)('concordance') as { compare: Compare };
const { compare } = concordance;
concordance.compare = (actual, expected, options) =>
  isDeepStrictEqual(actual, expected) ? { pass: true } : compare(actual, expected, options);
