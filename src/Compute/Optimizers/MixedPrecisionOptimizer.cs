using Megatron.Compute.Distributed;
using TorchSharp;
using static TorchSharp.torch;

namespace Megatron.Compute.Optimizers;

/// <summary>
/// AdamW or SGD over flat buffers: fp32 masters and moments, gradients from the fp32 main-grad buffer, weights written back in the model
/// dtype (arXiv 1710.03740, section 3.1). Optionally sharded over the data-parallel replicas (ZeRO-1, arXiv 1910.02054). For an fp32
/// model the flat weights are the masters; nothing is held twice.
/// </summary>
/// <remarks>
/// One step of the trainer: backward passes of all micro-batches, <see cref="ReduceGradients"/>, <see cref="Step"/>,
/// <see cref="GradientBuffer.Zero"/>. All calls come from the rank's thread; all ranks make the same calls in the same order.
/// </remarks>
public sealed class MixedPrecisionOptimizer : IDisposable
{
    /// <summary>Elements updated at a time on a CPU: small enough for a core's cache.</summary>
    private const long ChunkLengthCpu = 1L << 17;

    private readonly FlatLayout layout;
    private readonly GradientBuffer gradients;
    private readonly ParallelState parallel;
    private readonly OptimizerOptions options;
    private readonly LossScaler? lossScaler;
    private readonly Tensor weights;
    private readonly List<OwnedRange> owned = [];
    private readonly IReadOnlyList<FlatRange> countedRanges;
    private readonly List<OptimizerStateRange> state = [];
    private Tensor? hostGradient;
    private Tensor? hostWeights;
    private readonly GradientReducer reducer;
    private readonly List<CollectiveWork> gathers = [];

    /// <summary>State of every parameter of which this rank owns a part, in buffer order.</summary>
    public IReadOnlyList<OptimizerStateRange> State => state;

    /// <summary>Bytes of masters and moments on this rank's device; an fp32 model's weights are its masters and not counted.</summary>
    public long StateBytes => owned.Where(part => !part.IsOffloaded).Sum(part => sizeof(float) * ((part.Master?.numel() ?? 0) + part.ExpAvg.numel() + (part.ExpAvgSq?.numel() ?? 0)));

    /// <summary>Steps done (skipped ones not counted): the bias corrections' exponent. Set when a checkpoint is loaded.</summary>
    public long StepCount { get; set; }

    /// <summary>Steps skipped because the gradient was not finite, with an fp16 loss scale ("number of skipped iterations").</summary>
    public long NumSkippedSteps { get; set; }

    /// <summary>Steps skipped because the gradient was not finite, without a loss scale ("number of nan iterations").</summary>
    public long NumNanSteps { get; set; }

    /// <summary>The fp16 loss scale of the next step; 1 without a scaler.</summary>
    public double LossScale => lossScaler?.Scale ?? 1.0;

    /// <summary>
    /// Moves every parameter's data into one flat buffer (<see cref="Ops.Parameter.Rebind"/>) and allocates masters and moments.
    /// </summary>
    /// <param name="layout">Order and offsets, the same as those of <paramref name="gradients"/>.</param>
    /// <param name="lossScaler">Needed for fp16, null otherwise.</param>
    /// <exception cref="InvalidOperationException">The parameters differ in dtype or device, or the gradient buffer has another layout.</exception>
    public MixedPrecisionOptimizer(
        FlatLayout layout, GradientBuffer gradients, ParallelState parallel, OptimizerOptions options, LossScaler? lossScaler)
    {
        (this.layout, this.gradients, this.parallel, this.options, this.lossScaler) = (layout, gradients, parallel, options, lossScaler);
        if (gradients.NumElements != layout.NumElements)
            throw new InvalidOperationException($"The gradient buffer has {gradients.NumElements} elements, the layout {layout.NumElements}.");
        weights = PackWeights(layout);
        countedRanges = GradientNorm.CountedRanges(layout, parallel, options.UseDistributedOptimizer && !options.OrderedReduction);
        reducer = new GradientReducer(layout, gradients, parallel, options);
        using var scope = NewDisposeScope();
        var offloaded = weights.device_type == DeviceType.CPU || options.Kind != OptimizerKind.Adam ? 0 : options.OffloadFraction * layout.NumElements;
        foreach (var bucket in layout.Buckets)
        {
            owned.Add(Own(bucket, isOffloaded: bucket.Range.Begin < offloaded));
            foreach (var entry in bucket.Entries) AddState(entry, owned[^1]);
        }
    }

    /// <summary>
    /// Called before the first forward of a step; after it, each micro-batch's backward completes every parameter's gradient once
    /// (<see cref="Ops.Parameter.CompleteGradient"/>) and with the last one a bucket's reduction may start.
    /// </summary>
    public void BeginAccumulation(int numMicroBatches) => reducer.Begin(numMicroBatches);

    /// <summary>Sums the gradients over the replicas and inside the replica: see <see cref="GradientReducer"/>.</summary>
    public void ReduceGradients() => reducer.Finish();

    /// <summary>After <see cref="ReduceGradients"/>: makes a sharded optimizer's main gradients whole. For verification; a step does not need it.</summary>
    public void GatherGradients() => reducer.Gather();

    /// <summary>
    /// Norm, clip, update, write-back. The norm's square is summed over the world group; with a sharded optimizer the new weights are
    /// all-gathered over the replicas, each bucket as soon as it is updated: (d − 1)/d of the weights' bytes sent by each of d replicas. With
    /// <see cref="OptimizerOptions.OverlapParamGather"/> that goes on after the call and a parameter's data wait for it. A gradient that is
    /// not finite changes nothing but the counters and the loss scale.
    /// </summary>
    /// <param name="learningRate"><see cref="LearningRateSchedule.At"/> of this iteration.</param>
    public OptimizerStepResult Step(double learningRate)
    {
        using var scope = NewDisposeScope();
        AwaitWeights();
        var scale = LossScale;
        var squares = SumOfSquares(gradients.Flat);
        var factorOnDevice = weights.device_type == DeviceType.CUDA ? GradientNormKernel.ClipFactor(squares, scale, options.ClipGrad) : null;
        // Where all of the update is the device's, the host asks for the norm when the update is under way: kernels skip a step that is not finite.
        var isLaunchedFirst = factorOnDevice is not null && !owned.Any(part => part.IsOffloaded);
        if (isLaunchedFirst) Update(learningRate, StepCount + 1, new ClipFactor(double.NaN, factorOnDevice));
        var norm = Math.Sqrt(squares.item<double>()) / scale;
        var isFinite = double.IsFinite(norm);
        lossScaler?.Update(isFinite);
        if (!isFinite)
        {
            if (lossScaler is null) NumNanSteps++;
            else NumSkippedSteps++;
            return new OptimizerStepResult(norm, 1, IsSkipped: true, scale);
        }
        StepCount++;
        var clipFactor = GradientClipping.Factor(norm, options.ClipGrad);
        if (!isLaunchedFirst) Update(learningRate, StepCount, new ClipFactor(clipFactor / scale, factorOnDevice));
        return new OptimizerStepResult(norm, clipFactor, IsSkipped: false, scale);
    }

    /// <summary>Writes the masters into the model and gathers the other replicas' parts: called after a checkpoint was read into <see cref="State"/>.</summary>
    public void CopyMastersToModel()
    {
        AwaitWeights();
        using var scope = NewDisposeScope();
        foreach (var part in owned)
        {
            if (part.Master is not null) Slice(weights, part.Range).copy_(part.Master);
            StartGather(part);
        }
        AwaitWeights();
    }

    /// <summary>Sets the masters from the model's weights: called after weights alone were loaded into an existing optimizer.</summary>
    public void CopyModelToMasters()
    {
        AwaitWeights();
        using var scope = NewDisposeScope();
        foreach (var part in owned) part.Master?.copy_(Slice(weights, part.Range));
    }

    /// <inheritdoc/>
    public void Dispose()
    {
        reducer.Dispose();
        try
        {
            AwaitWeights();
        }
        catch (RankFaultException)
        {
            // The attempt has ended by a fault that its caller knows; the weights go with it.
        }
        foreach (var range in state)
        {
            range.Master.Dispose();
            range.ExpAvg.Dispose();
            range.ExpAvgSq?.Dispose();
        }
        foreach (var part in owned)
        {
            part.Master?.Dispose();
            part.ExpAvg.Dispose();
            part.ExpAvgSq?.Dispose();
        }
        hostGradient?.Dispose();
        hostWeights?.Dispose();
        weights.Dispose(); // the parameters' views keep the storage alive as long as the model lives
    }

    /// <summary>Global L2 norm of the weights in the model dtype, summed over the world group; every rank calls it.</summary>
    public double ComputeParamsNorm()
    {
        using var scope = NewDisposeScope();
        AwaitWeights();
        return Math.Sqrt(SumOfSquares(weights).item<double>());
    }

    /// <summary>Over the world group: fp64 scalar on the device.</summary>
    private Tensor SumOfSquares(Tensor flat)
    {
        var squares = GradientNorm.SumOfSquares(flat, countedRanges);
        parallel.World.AllReduce(squares, ReduceOp.Sum).Wait();
        return squares;
    }

    private void Update(double learningRate, long stepCount, ClipFactor factor)
    {
        foreach (var part in owned)
        {
            var decayed = part.Range.Intersect(part.Bucket.Decayed);
            var rest = part.Range with { Begin = part.Range.Begin + decayed.Length };
            Update(part, decayed, AdamWith(options.WeightDecay), factor);
            Update(part, rest, AdamWith(weightDecay: 0), factor);
            StartGather(part);
        }
        if (!options.OverlapParamGather) AwaitWeights();

        AdamWStep AdamWith(double weightDecay) => new(learningRate, weightDecay, options.AdamBeta1, options.AdamBeta2, options.AdamEps, stepCount);
    }

    private void Update(OwnedRange part, FlatRange range, in AdamWStep step, ClipFactor factor)
    {
        if (range.Length == 0) return;
        if (part.IsOffloaded)
        {
            UpdateOnHost(part, range, step, factor.OnHost);
            return;
        }
        var chunkLength = factor.OnDevice is null ? ChunkLengthCpu : range.Length;
        for (var begin = range.Begin; begin < range.End; begin += chunkLength)
        {
            using var scope = NewDisposeScope();
            UpdateChunk(part, new FlatRange(begin, Math.Min(begin + chunkLength, range.End)), step, factor);
        }
    }

    private void UpdateChunk(OwnedRange part, FlatRange chunk, in AdamWStep step, ClipFactor factor)
    {
        var (gradient, model, expAvg) = (Slice(gradients.Flat, chunk), Slice(weights, chunk), part.Slice(part.ExpAvg, chunk));
        var master = part.Master is null ? model : part.Slice(part.Master, chunk);
        var expAvgSq = part.ExpAvgSq is null ? null : part.Slice(part.ExpAvgSq, chunk);
        if (factor.OnDevice is { } onDevice)
        {
            if (expAvgSq is null) SgdMomentumKernel.Step(master, gradient, expAvg, model, step.LearningRate, step.WeightDecay, options.SgdMomentum, onDevice);
            else AdamWKernel.Step(master, gradient, expAvg, expAvgSq, model, step, onDevice);
            return;
        }
        if (expAvgSq is null) SgdMomentum.Reference(master, gradient, expAvg, step.LearningRate, step.WeightDecay, options.SgdMomentum, factor.OnHost);
        else AdamW.Reference(master, gradient, expAvg, expAvgSq, step, factor.OnHost);
        if (part.Master is not null) model.copy_(master);
    }

    /// <summary>Gradients to the host, the update there, weights back: each way one copy of the range, through page-locked buffers.</summary>
    private void UpdateOnHost(OwnedRange part, FlatRange range, AdamWStep step, double gradientFactor)
    {
        using var scope = NewDisposeScope();
        hostGradient ??= HostBuffer(ScalarType.Float32);
        hostWeights ??= HostBuffer(weights.dtype);
        var gradient = hostGradient.narrow(0, 0, range.Length).copy_(gradients.Slice(range.Begin, range.Length));
        var master = part.Slice(part.Master ?? throw new InvalidOperationException("An fp32 model's masters are its weights and stay on the device."), range);
        var expAvgSq = part.Slice(part.ExpAvgSq ?? throw new InvalidOperationException("Only Adam's state is moved to the host."), range);
        AdamWHost.Step(master, gradient, part.Slice(part.ExpAvg, range), expAvgSq, step, gradientFactor);
        Slice(weights, range).copy_(hostWeights.narrow(0, 0, range.Length).copy_(master));
    }

    private Tensor HostBuffer(ScalarType dtype) => Keep(empty(owned.Where(part => part.IsOffloaded).Max(part => part.Range.Length), dtype).pin_memory());

    private void StartGather(OwnedRange part)
    {
        if (!options.UseDistributedOptimizer || part.Bucket.Replicas.Size == 1) return;
        using var scope = NewDisposeScope();
        var work = part.Bucket.Replicas.AllGather(Slice(weights, part.Bucket.Range), Slice(weights, part.Range));
        gathers.Add(work);
        if (!options.OverlapParamGather) return;
        foreach (var entry in part.Bucket.Entries) entry.Parameter.ReadAfter(work);
    }

    /// <summary>Waits for the gathers that are under way; the first fault is thrown when all have ended.</summary>
    private void AwaitWeights()
    {
        RankFaultException? fault = null;
        foreach (var work in gathers)
        {
            try
            {
                work.Wait();
            }
            catch (RankFaultException problem)
            {
                fault ??= problem;
            }
        }
        gathers.Clear();
        if (fault is not null) throw fault;
    }

    private OwnedRange Own(FlatBucket bucket, bool isOffloaded)
    {
        var range = bucket.OwnedRange(options.UseDistributedOptimizer);
        isOffloaded &= weights.dtype != ScalarType.Float32;
        var device = isOffloaded ? CPU : weights.device;
        var master = weights.dtype == ScalarType.Float32 ? null : Keep(Slice(weights, range).to(ScalarType.Float32, device));
        var expAvg = Keep(zeros(range.Length, dtype: float32, device: device));
        var expAvgSq = options.Kind == OptimizerKind.Adam ? Keep(zeros(range.Length, dtype: float32, device: device)) : null;
        return new OwnedRange(bucket, range, master, expAvg, expAvgSq, isOffloaded);
    }

    private void AddState(FlatEntry entry, OwnedRange part)
    {
        var range = entry.Range.Intersect(part.Range);
        if (range.Length == 0) return;
        var inParameter = new FlatRange(range.Begin - entry.Range.Begin, range.End - entry.Range.Begin);
        var master = Keep(part.Master is null ? Slice(weights, range) : part.Slice(part.Master, range));
        var expAvgSq = part.ExpAvgSq is null ? null : Keep(part.Slice(part.ExpAvgSq, range));
        state.Add(new OptimizerStateRange(entry.Parameter, inParameter, master, Keep(part.Slice(part.ExpAvg, range)), expAvgSq));
    }

    private static Tensor PackWeights(FlatLayout layout)
    {
        if (layout.Entries.Count == 0) throw new InvalidOperationException("There is no parameter to train.");
        var first = layout.Entries[0].Parameter;
        var flat = Keep(zeros(layout.NumElements, dtype: first.Data.dtype, device: first.Data.device));
        using var scope = NewDisposeScope();
        foreach (var (parameter, range) in layout.Entries)
        {
            if (parameter.Data.dtype != first.Data.dtype)
                throw new InvalidOperationException($"{parameter.Name} is {parameter.Data.dtype}, {first.Name} is {first.Data.dtype}; all must have the model's dtype.");
            parameter.Rebind(Slice(flat, range).view(parameter.Shape));
        }
        return flat;
    }

    private static Tensor Slice(Tensor flat, FlatRange range) => flat.narrow(0, range.Begin, range.Length);

    private static Tensor Keep(Tensor tensor) => tensor.DetachFromDisposeScope();

    /// <summary>Clip factor over the loss scale.</summary>
    /// <param name="OnHost">NaN while only the device knows it.</param>
    /// <param name="OnDevice">See <see cref="GradientNormKernel.ClipFactor"/>; null on a CPU.</param>
    private readonly record struct ClipFactor(double OnHost, Tensor? OnDevice);

    /// <summary>The part of a bucket that this rank updates. Master is null for an fp32 model: the weights are the master.</summary>
    private sealed record OwnedRange(FlatBucket Bucket, FlatRange Range, Tensor? Master, Tensor ExpAvg, Tensor? ExpAvgSq, bool IsOffloaded)
    {
        public Tensor Slice(Tensor own, FlatRange range) => own.narrow(0, range.Begin - Range.Begin, range.Length);
    }
}
