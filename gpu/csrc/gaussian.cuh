// One Gaussian: from covariance to record, its box, its cell, and the chain rule back.
//
// The precision is factored from the outermost axis inwards, P = W^T W with
//     v3 = s3 dz        v2 = s2 u, u = dy - b dz        v1 = s1 (dx - c dz - a u)
// so that q = v1^2 + v2^2 + v3^2 is a sum of squares: nothing cancels in float32, needles included, and
// along a row of voxels only v1 changes, by the constant s1.
#pragma once

#include "platform.cuh"

constexpr int BRICK = 8;         // side of a brick, in voxels
constexpr int MAX_LEVELS = 13;   // sides of cells 8 to 32768: lattices up to 32767 voxels along an axis
constexpr int MAX_SIDE = 32767;  // boxes are packed as pairs of 16 bits

// q is kept in units in which exp(-q / 2) = 2^-q: KAPPA2 = log2(e) / 2 on its scale.
constexpr double KAPPA2 = 0.72134752044448170368;

// Read 16 bytes at a time; the box comes first, because most candidates of a brick are refused by it.
struct alignas(16) Record {
    int box[3];  // first voxel | last voxel << 16
    float gain;  // exp(log_weight)
    int anchor[3];  // a voxel of the box near the centre
    float b;
    float offset[3];  // centre minus anchor: float64 centres keep their precision
    float c, a;
    float s1, s2, s3;  // times sqrt(KAPPA2)
};
static_assert(sizeof(Record) == 64, "four 16-byte loads");

// Cells of every level in one numbering. A cell of level l has side 8 * 2^l; the top level is one cell.
struct Lattice {
    int size[3];
    int n_levels;
    int first_key[MAX_LEVELS + 1];  // first_key[n_levels] is the key of Gaussians that touch no voxel
};

HD int cells_along(const Lattice& lattice, int axis, int level) {
    const int shift = 3 + level;
    return (lattice.size[axis] + (1 << shift) - 1) >> shift;
}

// False if the lattice is out of range.
inline bool make_lattice(int64_t nx, int64_t ny, int64_t nz, Lattice& lattice) {
    const int64_t size[3] = {nx, ny, nz};
    for (int k = 0; k < 3; ++k) {
        if (size[k] < 1 || size[k] > MAX_SIDE) return false;
        lattice.size[k] = int(size[k]);
    }
    int64_t keys = 0;
    for (int level = 0; level < MAX_LEVELS; ++level) {
        lattice.first_key[level] = int(keys);
        const int64_t x = cells_along(lattice, 0, level), y = cells_along(lattice, 1, level);
        const int64_t cells = x * y * cells_along(lattice, 2, level);
        keys += cells;
        if (keys > (int64_t(1) << 30)) return false;
        lattice.n_levels = level + 1;
        lattice.first_key[level + 1] = int(keys);
        if (cells == 1) return true;
    }
    return false;
}

// The inputs, float32 or float64 each (bits of `doubles`: means, covariances, log-weights).
struct Inputs {
    const void *means, *covariances, *log_weights;
    int doubles;
};

HD double load(const void* data, int64_t i, int is_double) {
    return is_double ? static_cast<const double*>(data)[i] : double(static_cast<const float*>(data)[i]);
}

struct Gaussian {
    double mean[3], cov[6], log_weight;
};

HD Gaussian load_gaussian(const Inputs& in, int64_t i) {
    Gaussian g;
    for (int k = 0; k < 3; ++k) g.mean[k] = load(in.means, 3 * i + k, in.doubles & 1);
    for (int k = 0; k < 6; ++k) g.cov[k] = load(in.covariances, 6 * i + k, in.doubles & 2);
    g.log_weight = load(in.log_weights, i, in.doubles & 4);
    return g;
}

struct Factors {
    double b, c, a, var_x, var_y, var_z;
};

HD Factors factorize(const Gaussian& g) {
    Factors f;
    const double sxx = g.cov[0], sxy = g.cov[1], sxz = g.cov[2], syy = g.cov[3], syz = g.cov[4];
    f.var_z = g.cov[5];
    f.b = syz / f.var_z;
    f.c = sxz / f.var_z;
    f.var_y = syy - syz * f.b;
    const double rest = sxy - sxz * f.b;
    f.a = rest / f.var_y;
    f.var_x = sxx - sxz * f.c - rest * f.a;
    return f;
}

HD bool is_valid(const Gaussian& g, const Factors& f) {
    const double sum = g.cov[0] + g.cov[3] + g.cov[5] + g.mean[0] + g.mean[1] + g.mean[2] + g.log_weight;
    return f.var_z > 0 && f.var_y > 0 && f.var_x > 0 && sum - sum == 0;  // inf - inf and nan are not 0
}

struct Box {
    int low[3], high[3];  // inclusive; empty if high < low on any axis
};

HD double clamp(double value, double low, double high) { return value < low ? low : value > high ? high : value; }

HD Box find_box(const Gaussian& g, const Lattice& lattice, double cutoff) {
    Box box;
    const int diagonal[3] = {0, 3, 5};
    for (int k = 0; k < 3; ++k) {
        const double reach = cutoff * sqrt(g.cov[diagonal[k]]), n = lattice.size[k];
        box.low[k] = int(clamp(ceil(g.mean[k] - reach), 0.0, n));
        box.high[k] = int(clamp(floor(g.mean[k] + reach), -1.0, n - 1.0));
    }
    return box;
}

HD bool is_empty(const Box& box) {
    return box.high[0] < box.low[0] || box.high[1] < box.low[1] || box.high[2] < box.low[2];
}

HD int64_t volume_of(const Box& box) {
    int64_t volume = 1;
    for (int k = 0; k < 3; ++k) volume *= box.high[k] - box.low[k] + 1;
    return volume;
}

HD int anchor_of(const Gaussian& g, const Box& box, int axis) {
    return int(clamp(rint(g.mean[axis]), double(box.low[axis]), double(box.high[axis])));
}

// The cell of the anchor, at the finest level at which the box stays within the 26 neighbours. A brick
// therefore finds all its Gaussians in 27 cells of each level, and a giant costs no lists of pairs.
HD int key_of(const Gaussian& g, const Box& box, const Lattice& lattice) {
    for (int level = 0; level < lattice.n_levels; ++level) {
        const int shift = 3 + level;
        bool fits = true;
        int key = 0;
        for (int k = 2; k >= 0; --k) {
            const int cell = anchor_of(g, box, k) >> shift;
            fits = fits && (box.low[k] >> shift) >= cell - 1 && (box.high[k] >> shift) <= cell + 1;
            key = key * cells_along(lattice, k, level) + cell;
        }
        if (fits) return lattice.first_key[level] + key;
    }
    return lattice.first_key[lattice.n_levels];  // not reached: the top level is one cell
}

HD Record make_record(const Gaussian& g, const Factors& f, const Box& box) {
    Record r;
    for (int k = 0; k < 3; ++k) {
        r.anchor[k] = anchor_of(g, box, k);
        r.offset[k] = float(g.mean[k] - r.anchor[k]);
        r.box[k] = box.low[k] | box.high[k] << 16;
    }
    r.b = float(f.b);
    r.c = float(f.c);
    r.a = float(f.a);
    r.s1 = float(sqrt(KAPPA2 / f.var_x));
    r.s2 = float(sqrt(KAPPA2 / f.var_y));
    r.s3 = float(sqrt(KAPPA2 / f.var_z));
    r.gain = float(exp(g.log_weight));
    return r;
}

// Moments over voxels, with e = exp(-q / 2), t = (e - level)_+, h = (gradient of the weight) e inside the cut:
//     [0] sum grad t    [1-3] sum h v    [4-9] sum h v v^T (11, 12, 13, 22, 23, 33)    [10 + c] sum grad_c t
constexpr int GEOMETRY_MOMENTS = 10;

// dw/dmean = gain e P d and dw/dSigma = gain/2 e (P d)(P d)^T: with P d = W^T v, moments of v are enough.
HD void chain_rule(const Factors& f, const float* moments, double gain, double* mean, double* cov) {
    const double k = 1.0 / sqrt(KAPPA2);
    const double r1 = 1.0 / sqrt(f.var_x), r2 = 1.0 / sqrt(f.var_y), r3 = 1.0 / sqrt(f.var_z);
    const double w[3][3] = {{r1, -f.a * r1, (f.a * f.b - f.c) * r1}, {0.0, r2, -f.b * r2}, {0.0, 0.0, r3}};
    const float* m = moments + 4;
    const double m2[3][3] = {{m[0], m[1], m[2]}, {m[1], m[3], m[4]}, {m[2], m[4], m[5]}};
    for (int i = 0, out = 0; i < 3; ++i) {
        mean[i] = 0.0;
        for (int p = 0; p < 3; ++p) mean[i] += gain * k * w[p][i] * moments[1 + p];
        for (int j = i; j < 3; ++j, ++out) {
            double sum = 0.0;
            for (int p = 0; p < 3; ++p)
                for (int q = 0; q < 3; ++q) sum += w[p][i] * m2[p][q] * w[q][j];
            // An off-diagonal number stands at two places of the matrix.
            cov[out] = (i == j ? 0.5 : 1.0) * gain * k * k * sum;
        }
    }
}
