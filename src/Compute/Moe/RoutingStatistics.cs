using static TorchSharp.torch;

namespace Megatron.Compute.Moe;

/// <summary>
/// What the routers of a model saw since <see cref="Zero"/>: auxiliary losses and tokens per expert, one row for each layer of the model.
/// Routers add in their backward, which runs once for each micro-batch whatever is recomputed.
/// </summary>
/// <param name="numLayers">Layers of the whole model; rows of layers elsewhere or without experts stay 0.</param>
/// <param name="numExperts">E.</param>
/// <param name="device">Where the routers are.</param>
public sealed class RoutingStatistics(int numLayers, int numExperts, Device device) : IDisposable
{
    /// <summary>[layers] fp64: balance losses summed over micro-batches, not multiplied by the coefficient.</summary>
    public Tensor BalanceLoss { get; } = zeros([numLayers], float64, device).DetachFromDisposeScope();

    /// <summary>[layers] fp64: z-losses summed over micro-batches, not multiplied by the coefficient.</summary>
    public Tensor ZLoss { get; } = zeros([numLayers], float64, device).DetachFromDisposeScope();

    /// <summary>[layers, E] int64: assignments of tokens to experts.</summary>
    public Tensor TokensPerExpert { get; } = zeros([numLayers, numExperts], int64, device).DetachFromDisposeScope();

    /// <summary>Starts anew, before a step.</summary>
    public void Zero()
    {
        foreach (var tensor in (Tensor[])[BalanceLoss, ZLoss, TokensPerExpert]) tensor.zero_();
    }

    /// <summary>Adds a scalar (or the elements of a row) to one layer's row.</summary>
    internal static void Add(Tensor rows, int layerIndex, Tensor value)
    {
        using var row = rows.select(0, layerIndex);
        row.add_(value);
    }

    /// <inheritdoc/>
    public void Dispose()
    {
        foreach (var tensor in (Tensor[])[BalanceLoss, ZLoss, TokensPerExpert]) tensor.Dispose();
    }
}
