using Megatron.Compute.Configuration;
using static TorchSharp.torch;

namespace Megatron.Compute.Ops;

/// <summary>
/// Rotary position embedding in the half-rotation form (arXiv 2104.09864; channel i is paired with i + D/2), in plain libtorch
/// operations. The table is computed in fp32 like the published models' code, cast to the activation dtype and gathered by position id.
/// </summary>
public sealed class RotaryEmbedding : IDisposable
{
    private readonly Tensor cos_PD; // P positions, D channels: the two halves are equal
    private readonly Tensor sin_Ph; // h = D / 2 channels

    /// <summary>[positions, D] in the activation dtype.</summary>
    internal Tensor Cosines => cos_PD;

    /// <summary>[positions, D / 2].</summary>
    internal Tensor Sines => sin_Ph;

    /// <param name="headDim">Channels of a head, even.</param>
    /// <param name="numPositions">Rows of the table: the model's longest position + 1.</param>
    /// <param name="dtype">Activation dtype.</param>
    public RotaryEmbedding(RotaryConfig config, int headDim, int numPositions, ScalarType dtype, Device device)
    {
        using var scope = NewDisposeScope();
        var (inverseFrequencies, magnitude) = RotaryFrequencies.Compute(config, headDim, numPositions);
        var angles_Ph = arange(numPositions, ScalarType.Float32).unsqueeze(1).mul(tensor(inverseFrequencies));
        var cos_Ph = angles_Ph.cos().mul_(magnitude);
        cos_PD = cat([cos_Ph, cos_Ph], 1).to(dtype, device).DetachFromDisposeScope();
        sin_Ph = angles_Ph.sin().mul_(magnitude).to(dtype, device).DetachFromDisposeScope();
    }

    /// <summary>Rotates every head of <paramref name="x_TND"/> in place by the angle of its token's position.</summary>
    /// <param name="x_TND">[T, heads, D], a view is fine.</param>
    /// <param name="positions_T">[T] int64.</param>
    public void ForwardInPlace(Tensor x_TND, Tensor positions_T) => Rotate(x_TND, positions_T, inverse: false);

    /// <summary>The backward of a rotation is the rotation by the opposite angle, in place on the gradient.</summary>
    public void BackwardInPlace(Tensor grad_TND, Tensor positions_T) => Rotate(grad_TND, positions_T, inverse: true);

    /// <inheritdoc/>
    public void Dispose()
    {
        cos_PD.Dispose();
        sin_Ph.Dispose();
    }

    private void Rotate(Tensor x_TND, Tensor positions_T, bool inverse)
    {
        if (RotaryKernel.Supports(x_TND))
        {
            RotaryKernel.Rotate(x_TND, cos_PD, sin_Ph, positions_T, inverse);
            return;
        }
        using var scope = NewDisposeScope();
        var half = x_TND.shape[^1] / 2;
        var cos = cos_PD.index_select(0, positions_T).unsqueeze(1);
        var sin = sin_Ph.index_select(0, positions_T).unsqueeze(1);
        if (inverse) sin.neg_();
        var first = x_TND.narrow(-1, 0, half);
        var second = x_TND.narrow(-1, half, half);
        var crossFirst = first.mul(sin);
        var crossSecond = second.mul(sin);
        x_TND.mul_(cos);
        first.sub_(crossSecond);
        second.add_(crossFirst);
    }
}
