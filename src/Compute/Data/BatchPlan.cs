using System.Buffers.Binary;
using System.IO.Hashing;

namespace Megatron.Compute.Data;

/// <summary>The order in which an epoch visits its samples.</summary>
public enum SampleOrder
{
    /// <summary>As they lie (<c>dataloader_type single</c>, and evaluation).</summary>
    Sequential,

    /// <summary>A new random order in each epoch, from the seed and the epoch number (<c>dataloader_type cyclic</c>).</summary>
    Shuffled,
}

/// <summary>
/// Which samples make up which global batch: a pure function of (number of samples, global batch size, order, seed). The orders of epoch 0,
/// 1, 2 … form one endless sequence and global batch i is its i-th stretch of <c>globalBatchSize</c> samples. So nothing is dropped at the
/// end of an epoch: a batch that does not fit begins the next one. Neither the data-parallel size nor the micro-batch size takes part (D12).
/// </summary>
public sealed class BatchPlan
{
    private readonly ulong _seed;
    private EpochOrder? _lastOrder;

    /// <param name="numSamples">Samples of one epoch, at least 1.</param>
    /// <param name="globalBatchSize">Samples of one optimizer step.</param>
    /// <param name="order">Order inside an epoch.</param>
    /// <param name="seed">Seed of the epoch orders; without effect on <see cref="SampleOrder.Sequential"/>.</param>
    public BatchPlan(int numSamples, int globalBatchSize, SampleOrder order, ulong seed)
    {
        ArgumentOutOfRangeException.ThrowIfNegativeOrZero(numSamples);
        ArgumentOutOfRangeException.ThrowIfNegativeOrZero(globalBatchSize);
        NumSamples = numSamples;
        GlobalBatchSize = globalBatchSize;
        Order = order;
        _seed = seed;
    }

    /// <summary>Samples of one epoch.</summary>
    public int NumSamples { get; }

    /// <summary>Samples of one optimizer step.</summary>
    public int GlobalBatchSize { get; }

    /// <summary>Order inside an epoch.</summary>
    public SampleOrder Order { get; }

    /// <summary>
    /// Global batches after which every sample has been visited <paramref name="numEpochs"/> times: the quotient rounded up, because the
    /// last batch is completed from the following epoch. This is <c>train_iters</c> where only <c>max_epochs</c> is given.
    /// </summary>
    public long NumBatches(int numEpochs) => ((long)NumSamples * numEpochs + GlobalBatchSize - 1) / GlobalBatchSize;

    /// <summary>0-based epoch of the first sample of a global batch.</summary>
    public long EpochOf(long batchIndex) => batchIndex * GlobalBatchSize / NumSamples;

    /// <summary>[globalBatchSize] sample indices of a global batch, in the order that numbers its tokens.</summary>
    public int[] SampleIndices(long batchIndex)
    {
        ArgumentOutOfRangeException.ThrowIfNegative(batchIndex);
        var indices = new int[GlobalBatchSize];
        var position = checked(batchIndex * GlobalBatchSize);
        for (var i = 0; i < indices.Length; i++, position++)
            indices[i] = OrderOf(position / NumSamples)[(int)(position % NumSamples)];
        return indices;
    }

    /// <summary>[at most globalBatchSize] sample indices of a batch of a single pass, whose last batch may be short.</summary>
    public int[] SampleIndicesOfOnePass(long batchIndex)
    {
        var indices = SampleIndices(batchIndex);
        var left = NumSamples - batchIndex * GlobalBatchSize;
        ArgumentOutOfRangeException.ThrowIfNegativeOrZero(left, nameof(batchIndex));
        return left >= indices.Length ? indices : indices[..(int)left];
    }

    /// <summary>Adds the settings of the plan to a hash.</summary>
    public void AppendTo(XxHash64 hash)
    {
        Span<byte> settings = stackalloc byte[20];
        BinaryPrimitives.WriteInt32LittleEndian(settings, NumSamples);
        BinaryPrimitives.WriteInt32LittleEndian(settings[4..], GlobalBatchSize);
        BinaryPrimitives.WriteInt32LittleEndian(settings[8..], (int)Order);
        BinaryPrimitives.WriteUInt64LittleEndian(settings[12..], Order == SampleOrder.Shuffled ? _seed : 0);
        hash.Append(settings);
    }

    private int[] OrderOf(long epoch)
    {
        // One order is kept: batches are asked for in rising order. Rank threads may share a plan; the worst of a race is one more shuffle.
        var key = Order == SampleOrder.Sequential ? 0 : epoch;
        if (_lastOrder is { } last && last.Epoch == key) return last.Indices;
        var indices = Order == SampleOrder.Sequential
            ? Enumerable.Range(0, NumSamples).ToArray()
            : new DataRandom(_seed, "epoch", epoch).Permutation(NumSamples);
        _lastOrder = new EpochOrder(key, indices);
        return indices;
    }

    private sealed record EpochOrder(long Epoch, int[] Indices);
}
