// Compare and project vectors. A vector is an array of numbers; a matrix has one vector per token.

const dot = (a, b) => a.reduce((sum, value, i) => sum + value * b[i], 0);
const norm = (a) => Math.sqrt(dot(a, a));

/** Return the cosine of the angle between two vectors; 0 if one of them is zero. */
export function cosine(a, b) {
  const length = norm(a) * norm(b);
  return length ? Math.max(-1, Math.min(1, dot(a, b) / length)) : 0;
}

/** Average, over the tokens of `a`, the best match among the tokens of `b`: MaxSim per token. */
export function meanMaxSim(a, b) {
  return a.reduce((sum, token) => sum + Math.max(...b.map((other) => cosine(token, other))), 0) / a.length;
}

/** Return all pairwise similarities of vectors, or of matrices. */
export function similarities(items) {
  const compare = Array.isArray(items[0]?.[0]) ? meanMaxSim : cosine;
  return items.map((a) => items.map((b) => compare(a, b)));
}

/** Return one vector per item: matrices are averaged over their tokens. */
export function flatten(items) {
  return items.map((item) =>
    Array.isArray(item[0]) ? item[0].map((_, i) => item.reduce((sum, row) => sum + row[i], 0) / item.length) : item,
  );
}

/** Write sparse vectors with the dimensions that occur in any of them. */
export function densify(sparse) {
  const columns = new Map([...new Set(sparse.flatMap(({ indices }) => indices))].map((index, i) => [index, i]));
  return sparse.map(({ indices, values }) => {
    const dense = new Array(columns.size).fill(0);
    indices.forEach((index, i) => (dense[columns.get(index)] = values[i]));
    return dense;
  });
}

/**
 * Project vectors on their two principal components.
 *
 * Returns the points, and the fractions of the variance that the two axes hold. A few vectors have many
 * dimensions, so the components come from the small Gram matrix of the centred vectors.
 */
export function project(vectors) {
  const mean = vectors[0].map((_, i) => vectors.reduce((sum, each) => sum + each[i], 0) / vectors.length);
  const centred = vectors.map((each) => each.map((value, i) => value - mean[i]));
  const gram = centred.map((a) => centred.map((b) => dot(a, b)));
  const total = gram.reduce((sum, row, i) => sum + row[i], 0);
  const axes = [];
  for (let k = 0; k < 2; k++) {
    const { value, vector } = findLargestEigenpair(gram);
    axes.push({ value, coordinates: vector.map((each) => each * Math.sqrt(value)) });
    gram.forEach((row, i) => row.forEach((_, j) => (row[j] -= value * vector[i] * vector[j]))); // deflate
  }
  return {
    points: vectors.map((_, i) => axes.map(({ coordinates }) => coordinates[i])),
    explained: axes.map(({ value }) => (total > 0 ? value / total : 0)),
  };
}

function findLargestEigenpair(matrix) {
  // Power iteration from a vector that is orthogonal to no other by symmetry.
  let vector = matrix.map((_, i) => Math.sin(i + 1));
  let value = 0;
  for (let step = 0; step < 300; step++) {
    const next = matrix.map((row) => dot(row, vector));
    value = norm(next);
    if (value < 1e-12) return { value: 0, vector: vector.map(() => 0) };
    vector = next.map((each) => each / value);
  }
  return { value, vector };
}
