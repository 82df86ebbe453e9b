using static TorchSharp.torch;

namespace Megatron.Compute.Data;

/// <summary>
/// A micro-batch as tensors in host memory, ready to go to the device. Pinned ones are made by the threads that read ahead
/// (<c>num_workers</c>): their copy runs beside the device's work, and the rank's thread waits for nothing.
/// </summary>
/// <remarks>Whoever computes with it takes the tensors over.</remarks>
public sealed class StagedMicroBatch : IDisposable
{
    /// <summary>The numbers, for what is planned on the host.</summary>
    public MicroBatch Batch { get; }

    /// <summary>int64 [T].</summary>
    public Tensor TokenIds { get; }

    /// <summary>int64 [T].</summary>
    public Tensor Labels { get; }

    /// <summary>fp32 [T], 0 where the label is ignored.</summary>
    public Tensor LossWeights { get; }

    /// <summary>int64 [T].</summary>
    public Tensor Positions { get; }

    /// <summary>int32 [segments + 1].</summary>
    public Tensor CuSeqLens { get; }

    /// <summary>int64 [T].</summary>
    public Tensor GlobalTokenIndex { get; }

    /// <param name="batch">This rank's part of a row.</param>
    /// <param name="isPinned">For a GPU.</param>
    public StagedMicroBatch(MicroBatch batch, bool isPinned = false)
    {
        Batch = batch;
        TokenIds = Stage(tensor(batch.TokenIds, int64), isPinned);
        Labels = Stage(tensor(batch.Labels, int64), isPinned);
        LossWeights = Stage(tensor(WeightsOf(batch), float32), isPinned);
        Positions = Stage(tensor(batch.Positions, int64), isPinned);
        CuSeqLens = Stage(tensor(batch.CuSeqLens, int32), isPinned);
        GlobalTokenIndex = Stage(tensor(batch.GlobalTokenIndex, int64), isPinned);
    }

    /// <summary>Adds the pinned tensors of a rank's parts of all rows.</summary>
    public static GlobalBatch Pin(GlobalBatch batch, ContextSplit split) =>
        batch with { Staged = [.. batch.MicroBatches.Select(row => new StagedMicroBatch(split.Take(row), isPinned: true))] };

    /// <summary>Loss weight of each position: those given, else 1 where there is a target.</summary>
    public static float[] WeightsOf(MicroBatch batch) =>
        batch.LossWeights ?? Array.ConvertAll(batch.Labels, label => label == MicroBatch.IgnoreIndex ? 0f : 1f);

    /// <inheritdoc/>
    public void Dispose()
    {
        foreach (var tensor in (Tensor[])[TokenIds, Labels, LossWeights, Positions, CuSeqLens, GlobalTokenIndex]) tensor.Dispose();
    }

    private static Tensor Stage(Tensor plain, bool isPinned)
    {
        if (!isPinned) return plain.DetachFromDisposeScope();
        using (plain) return plain.pin_memory().DetachFromDisposeScope();
    }
}
