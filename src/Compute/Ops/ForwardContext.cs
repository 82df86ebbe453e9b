using Megatron.Compute.Data;
using Megatron.Compute.Ops.ContextParallel;
using static TorchSharp.torch;

namespace Megatron.Compute.Ops;

/// <summary>
/// One micro-batch on this rank's device, with the facts that layers read beside their input: where samples begin, positions, the
/// coordinates of the counter-based random numbers. Made once per micro-batch by the trainer; freed after its last BackwardWeight.
/// </summary>
public sealed class ForwardContext : IDisposable
{
    private RealTokens? realTokens;
    private ZigZagOrder? zigZag;
    private SegmentHalves? halves;
    private Tensor? wholeCuSeqLens;
    private Tensor? lossFactorOnDevice;

    /// <summary>The host arrays this context was made from: this rank's tokens.</summary>
    public MicroBatch Batch { get; }

    /// <summary>The row before it was split over the context-parallel group; the same object as <see cref="Batch"/> when it was not.</summary>
    public MicroBatch WholeRow { get; init; }

    /// <summary>[T] int64 token ids on the device.</summary>
    public Tensor TokenIds { get; }

    /// <summary>[T] int64 shifted labels, <see cref="MicroBatch.IgnoreIndex"/> where there is no target.</summary>
    public Tensor Labels { get; }

    /// <summary>[T] fp32 weight of each target (0 where ignored).</summary>
    public Tensor LossWeights { get; }

    /// <summary>[T] int64 position ids.</summary>
    public Tensor Positions { get; }

    /// <summary>[segments + 1] int32 segment borders on the device.</summary>
    public Tensor CuSeqLens { get; }

    /// <summary>[segments + 1] int32 segment borders of <see cref="WholeRow"/> on the device.</summary>
    public Tensor WholeCuSeqLens =>
        ReferenceEquals(WholeRow, Batch) ? CuSeqLens : wholeCuSeqLens ??= Keep(tensor(WholeRow.CuSeqLens, int32, TokenIds.device));

    /// <summary>Order of the tokens in <see cref="WholeRow"/> and on the context-parallel ranks; made when first asked for.</summary>
    public ZigZagOrder ZigZag => zigZag ??= new ZigZagOrder(WholeRow, WholeRow.NumTokens / Batch.NumTokens, TokenIds.device);

    /// <summary>The two chunks of each segment that this context-parallel rank holds; made when first asked for.</summary>
    public SegmentHalves Halves => halves ??= new SegmentHalves(Batch, TokenIds.device);

    /// <summary>[T] int64 index of each token in the global batch.</summary>
    public Tensor GlobalTokenIndex { get; }

    /// <summary>0-based optimizer step, a coordinate of dropout.</summary>
    public long Step { get; }

    /// <summary>False in evaluation and inference: no dropout.</summary>
    public bool IsTraining { get; }

    /// <summary>
    /// The one factor that turns the summed cross-entropy of this micro-batch into its share of the training loss (DESIGN D8):
    /// 1/(target tokens of the global batch) with per-token loss, else 1/(tokens of the micro-batch × micro-batches of the global batch).
    /// Times the fp16 loss scale when there is one. Nobody else divides.
    /// </summary>
    public double LossFactor { get; private set; }

    /// <summary><see cref="LossFactor"/> as a 0-d fp64 tensor: kernels read it there, so that a recorded step may be given another one.</summary>
    public Tensor LossFactorOnDevice => lossFactorOnDevice ??= Keep(tensor(LossFactor, float64, TokenIds.device));

    /// <summary>Weight of auxiliary losses: 1/(micro-batches of the global batch), times the fp16 loss scale.</summary>
    public double AuxiliaryLossFactor { get; }

    /// <summary>
    /// When every segment has the same length S and none is padding: (B, S) with B·S = T, so that attention can view the row as
    /// [B, S, heads, dim] without a copy; null otherwise.
    /// </summary>
    public (int BatchSize, int SeqLen)? EqualLength { get; }

    /// <summary>Keys and values of earlier tokens in generation; null in training and evaluation.</summary>
    public IAttentionCache? AttentionCache { get; init; }

    public ForwardContext(MicroBatch batch, Device device, long step, bool isTraining, double lossFactor, double auxiliaryLossFactor)
        : this(new StagedMicroBatch(batch), device, step, isTraining, lossFactor, auxiliaryLossFactor)
    {
    }

    /// <param name="staged">Its tensors are taken over.</param>
    public ForwardContext(StagedMicroBatch staged, Device device, long step, bool isTraining, double lossFactor, double auxiliaryLossFactor)
    {
        var batch = staged.Batch;
        (Batch, WholeRow, Step, IsTraining, LossFactor, AuxiliaryLossFactor) = (batch, batch, step, isTraining, lossFactor, auxiliaryLossFactor);
        TokenIds = Take(staged.TokenIds, device);
        Labels = Take(staged.Labels, device);
        LossWeights = Take(staged.LossWeights, device);
        Positions = Take(staged.Positions, device);
        CuSeqLens = Take(staged.CuSeqLens, device);
        GlobalTokenIndex = Take(staged.GlobalTokenIndex, device);
        EqualLength = FindEqualLength(batch);
    }

    /// <summary>
    /// The tokens of <paramref name="share"/> that are not padding; made when first asked for, and kept: a rank has one share of each row.
    /// </summary>
    /// <param name="numTokens">Tokens of this rank's activations.</param>
    public RealTokens RealTokensOf(TokenShare share, long numTokens)
    {
        if (realTokens?.Share == share) return realTokens;
        realTokens?.Dispose();
        return realTokens = new RealTokens(Batch, share, numTokens, TokenIds.device);
    }

    /// <summary>Writes another row into the same tensors: for work that was recorded with their addresses.</summary>
    /// <param name="batch">Has the shape of <see cref="Batch"/> (<see cref="MicroBatch.HasShapeOf"/>).</param>
    public void Refill(MicroBatch batch, double lossFactor)
    {
        using var scope = NewDisposeScope();
        LossFactor = lossFactor;
        lossFactorOnDevice?.fill_(lossFactor);
        TokenIds.copy_(tensor(batch.TokenIds, int64));
        Labels.copy_(tensor(batch.Labels, int64));
        LossWeights.copy_(tensor(StagedMicroBatch.WeightsOf(batch), float32));
        Positions.copy_(tensor(batch.Positions, int64));
        GlobalTokenIndex.copy_(tensor(batch.GlobalTokenIndex, int64));
    }

    /// <inheritdoc/>
    public void Dispose()
    {
        realTokens?.Dispose();
        zigZag?.Dispose();
        halves?.Dispose();
        wholeCuSeqLens?.Dispose();
        lossFactorOnDevice?.Dispose();
        foreach (var tensor in (Tensor[])[TokenIds, Labels, LossWeights, Positions, CuSeqLens, GlobalTokenIndex]) tensor.Dispose();
    }

    private static Tensor Keep(Tensor tensor) => tensor.DetachFromDisposeScope();

    // The copy out of pinned memory is only begun here; libtorch's allocator keeps that memory until it is done.
    private static Tensor Take(Tensor staged, Device device)
    {
        if (device.type == TorchSharp.DeviceType.CPU) return staged;
        using (staged) return Keep(staged.to(device, non_blocking: true));
    }

    private static (int, int)? FindEqualLength(MicroBatch batch)
    {
        var first = batch.CuSeqLens[1];
        for (var i = 2; i < batch.CuSeqLens.Length; i++)
            if (batch.CuSeqLens[i] - batch.CuSeqLens[i - 1] != first) return null;
        return (batch.CuSeqLens.Length - 1, first);
    }
}
