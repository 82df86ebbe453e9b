namespace Megatron.Compute.Optimizers;

/// <summary>The clip rule of numerics 3.7 (arXiv 1211.5063, algorithm 1).</summary>
public static class GradientClipping
{
    /// <summary>Factor that brings a gradient of norm <paramref name="norm"/> to at most <paramref name="maxNorm"/>; 1 when it is small enough.</summary>
    /// <param name="maxNorm">0 turns clipping off.</param>
    public static double Factor(double norm, double maxNorm) => maxNorm > 0 ? Math.Min(1, maxNorm / (norm + 1e-6)) : 1;
}
