using Megatron.Compute.Checkpointing;
using Megatron.Compute.Configuration;
using Megatron.Compute.Data;
using Megatron.Compute.Distributed;
using Megatron.Compute.Models;
using Megatron.Compute.Moe;
using Megatron.Compute.Native;
using Megatron.Compute.Ops;
using Megatron.Compute.Optimizers;
using Megatron.Compute.PipelineParallel;
using static TorchSharp.torch;

namespace Megatron.Compute.Training;

/// <summary>What one optimizer step showed, on this rank.</summary>
/// <param name="LossSum">Cross-entropy summed over this rank's targets; 0 on ranks that do not report (see <see cref="Trainer.ReportsLoss"/>).</param>
/// <param name="TokenCount">Weight of those targets, likewise.</param>
/// <param name="Optimizer">Norm, clip factor, skip.</param>
public readonly record struct StepMetrics(double LossSum, double TokenCount, OptimizerStepResult Optimizer)
{
    /// <summary>Mean cross-entropy per target of this rank.</summary>
    public double Loss => TokenCount == 0 ? 0 : LossSum / TokenCount;

    /// <summary>Balance loss of the routers without its coefficient: mean over this rank's micro-batches and layers with experts; null when there is none.</summary>
    public double? LoadBalancingLoss { get; init; }

    /// <summary>z-loss of the routers, likewise.</summary>
    public double? ZLoss { get; init; }
}

/// <summary>Settings of the step that do not change during a run.</summary>
public sealed record TrainerOptions
{
    /// <summary>See <see cref="LossScaling"/>.</summary>
    public required bool PerTokenLoss { get; init; }

    /// <summary>Accumulators of the gradient over all data-parallel ranks (DESIGN D12): 1, or a multiple of their number.</summary>
    public required int NumLogicalShards { get; init; }

    public required OptimizerOptions Optimizer { get; init; }

    /// <summary><c>--ddp_bucket_size</c>: elements of a bucket of parameters and gradients.</summary>
    public long BucketElements { get; init; } = FlatLayout.DefaultBucketElements;

    /// <summary>Dynamic loss scale for fp16, else null.</summary>
    public LossScalerOptions? LossScaler { get; init; }

    /// <summary>Forward and backward are recorded and replayed as a CUDA graph; all batches must have one shape.</summary>
    public bool CudaGraph { get; init; }

    /// <summary>Order of the work in the pipeline; no number depends on it.</summary>
    public PipelineScheduleKind Schedule { get; init; } = PipelineScheduleKind.Auto;
}

/// <summary>
/// One optimizer step: counts the targets of the global batch, runs the schedule over the micro-batches, reduces, clips, updates.
/// Owns the gradient buffer and the optimizer; the model belongs to the caller. Lives on the rank's thread.
/// </summary>
public sealed class Trainer : IDisposable
{
    private readonly ModelChunks model;
    private readonly ContextSplit split;
    private readonly ParallelState parallel;
    private readonly ProcessGroup world;
    private readonly TrainerOptions options;
    private readonly Device device;
    private readonly GptPipelineStage stage;
    private readonly PipelineInterpreter interpreter;
    private readonly PipelineShape shape;
    private readonly int stageIndex;
    private readonly int numLocalShards;
    private readonly int firstShard;
    private readonly bool countsMicroBatches;
    private readonly GradientBuffer gradients;
    private readonly LossScaler? scaler;
    private readonly StepGraph? graph;
    private readonly Dictionary<(int NumMicroBatches, bool IsTraining), IReadOnlyList<PipelineAction>> schedules = [];
    private double targetWeight; // of this rank's tokens in the batch at hand
    private GlobalBatch current = new(0, [], 0, 0, 0, 0) { FirstMicroBatchIndex = 0 };

    /// <summary>Masters, moments, loss scale, step count: what a checkpoint holds beside the weights.</summary>
    public MixedPrecisionOptimizer Optimizer { get; }

    /// <summary>
    /// True on the ranks whose loss sums and token counts together are those of the batch, each counted once: of the ranks of the last
    /// stage that hold the same loss one reports. Context-parallel ranks report the targets of their own tokens.
    /// </summary>
    public bool ReportsLoss { get; }

    /// <param name="model">This rank's chunks.</param>
    /// <exception cref="ConfigException">GRAPH002: a CUDA graph was asked for where none can be recorded.</exception>
    public Trainer(ModelChunks model, ParallelState parallel, Device device, TrainerOptions options)
    {
        (this.model, this.options, this.device, this.parallel, world) = (model, options, device, parallel, parallel.World);
        split = new ContextSplit(parallel.ContextParallel.Rank, parallel.ContextParallel.Size);
        ReportsLoss = model.HasHead && parallel.TensorParallel.Rank == 0;
        countsMicroBatches = parallel.TensorParallel.Rank == 0 && parallel.ContextParallel.Rank == 0;
        // Buckets are units of communication and of moving state to the host: a replica that is alone would only launch more kernels for them.
        var isAlone = options.Optimizer.OffloadFraction == 0 && parallel.DataContextParallel.Size == 1 && parallel.ExpertDataParallel.Size == 1 && options.NumLogicalShards <= 1;
        var layout = FlatLayout.Create(model.Parameters, parallel, isAlone ? long.MaxValue : options.BucketElements);
        numLocalShards = options.NumLogicalShards / parallel.DataParallel.Size;
        firstShard = numLocalShards * parallel.DataParallel.Rank;
        gradients = layout.CreateGradientBuffer(device, Math.Max(1, numLocalShards));
        scaler = options.LossScaler is null ? null : new LossScaler(options.LossScaler);
        Optimizer = new MixedPrecisionOptimizer(layout, gradients, parallel, options.Optimizer, scaler);
        stage = new GptPipelineStage(model.Chunks, device, SelectLogicalShard);
        shape = new PipelineShape(parallel.PipelineParallel.Size, model.Chunks.Count);
        stageIndex = parallel.PipelineParallel.Rank;
        interpreter = new PipelineInterpreter(parallel.PipelineParallel, shape.NumChunks, model.Options.Dtype, device);
        graph = options.CudaGraph ? CreateGraph() : null;
    }

    /// <summary>
    /// Forward, backward and update of one global batch.
    /// </summary>
    /// <param name="batch">This rank's share.</param>
    /// <param name="learningRate">Of this step.</param>
    /// <exception cref="ConfigException">GPU004: the device's memory ran out; says what holds how much.</exception>
    public StepMetrics TrainStep(GlobalBatch batch, double learningRate)
    {
        var metrics = StepOnce(batch, learningRate);
        if (device.type == TorchSharp.DeviceType.CPU) FreeMemory.GiveBackWhenDue();
        return metrics;
    }

    private StepMetrics StepOnce(GlobalBatch batch, double learningRate)
    {
        using var scope = NewDisposeScope();
        ConfigException? explained = null;
        try
        {
            AccumulateGradients(batch);
            Optimizer.ReduceGradients();
            // On its way while the optimizer works, which ends with the host waiting for the norm: one wait for both.
            var lossSum = ReportsLoss ? stage.LossSum.to(CPU, non_blocking: true) : null;
            var update = Optimizer.Step(learningRate);
            var metrics = Metrics(batch, lossSum, update);
            parallel.ThrowIfFaulted();
            return metrics;
        }
        // In the filter everything is still held; after it the step's activations are gone.
        catch (Exception e) when ((explained = OutOfMemory.Explain(e, Memory(), batch.MicroBatches.Max(microBatch => microBatch.NumTokens))) is not null)
        {
            throw explained;
        }
    }

    /// <summary>
    /// Tokens that this rank's routers gave to each expert in the last step, summed over its layers; null without experts. Reads from the device.
    /// </summary>
    public long[]? CountTokensPerExpert()
    {
        using var scope = NewDisposeScope();
        long[]? total = null;
        foreach (var chunk in model.Chunks)
        {
            if (chunk.Routing is not { } routing) continue;
            var counts = routing.TokensPerExpert.sum(dim: 0).cpu().data<long>().ToArray();
            total = total is null ? counts : [.. total.Zip(counts, (sum, count) => sum + count)];
        }
        return total;
    }

    /// <summary>What this rank holds on its device right now.</summary>
    public DeviceMemory Memory()
    {
        var weights = model.Parameters.Sum(parameter => parameter.NumElements * parameter.Data.element_size());
        return new DeviceMemory(weights, gradients.NumElements * sizeof(float) * gradients.NumLogicalShards, Optimizer.StateBytes, stage.SavedBytes);
    }

    /// <summary>
    /// Forward and backward without the update: leaves this rank's gradients in every parameter's main gradient or, with overlapped
    /// reduction, on their way to the other replicas until <see cref="MixedPrecisionOptimizer.ReduceGradients"/>.
    /// </summary>
    public void AccumulateGradients(GlobalBatch batch)
    {
        current = batch;
        if (graph is not null)
        {
            var recorded = graph.Fill(batch.Index, [.. batch.MicroBatches.Select(row => (split.Take(row), LossFactor(batch, row)))], m => MakeContext(batch, m, isTraining: true));
            targetWeight = batch.MicroBatches.Sum(WeightOf);
            graph.Run(() => Accumulate(recorded));
            return;
        }
        var contexts = MakeContexts(batch, isTraining: true);
        try
        {
            Accumulate(contexts);
        }
        finally
        {
            foreach (var context in contexts) context.Dispose();
        }
    }

    private void Accumulate(IReadOnlyList<ForwardContext> contexts)
    {
        gradients.Zero();
        foreach (var chunk in model.Chunks) chunk.Routing?.Zero();
        Optimizer.BeginAccumulation(contexts.Count);
        try
        {
            stage.Begin(contexts);
            interpreter.Run(ScheduleOf(contexts.Count, isTraining: true), stage);
        }
        finally
        {
            stage.Abandon();
        }
    }

    /// <summary>Forward only, without dropout.</summary>
    /// <returns>Cross-entropy summed over this rank's targets, and their weight; zeros on ranks that do not report.</returns>
    public (double LossSum, double TokenCount) Evaluate(GlobalBatch batch)
    {
        using var scope = NewDisposeScope();
        var contexts = MakeContexts(batch, isTraining: false);
        try
        {
            stage.Begin(contexts);
            interpreter.Run(ScheduleOf(contexts.Length, isTraining: false), stage);
            return ReportsLoss ? (stage.LossSum.item<double>(), targetWeight) : (0, 0);
        }
        finally
        {
            stage.Abandon();
            foreach (var context in contexts) context.Dispose();
        }
    }

    /// <summary>Counters and loss scale for a checkpoint; tensors are in <see cref="Optimizer"/>'s state.</summary>
    /// <param name="seed">Seed of dropout; null leaves random state out.</param>
    public TrainerState Capture(RunProgress progress, ulong? seed, ulong dataPlanHash) => new()
    {
        Iteration = progress.Iteration,
        ConsumedSamples = progress.ConsumedSamples,
        OptimizerSteps = Optimizer.StepCount,
        SkippedIterations = Optimizer.NumSkippedSteps,
        NanIterations = Optimizer.NumNanSteps,
        LossScaler = scaler?.State,
        Seed = seed,
        Data = new DataCursor(progress.Iteration, dataPlanHash) { Stream = progress.StreamCursor },
    };

    /// <summary>Takes counters and loss scale back; the moments have been loaded into <see cref="Optimizer"/>'s state.</summary>
    public void Restore(TrainerState state)
    {
        Optimizer.StepCount = state.OptimizerSteps;
        Optimizer.NumSkippedSteps = state.SkippedIterations;
        Optimizer.NumNanSteps = state.NanIterations;
        if (scaler is not null && state.LossScaler is { } saved) scaler.State = saved;
    }

    /// <inheritdoc/>
    public void Dispose()
    {
        graph?.Dispose();
        stage.Dispose();
        Optimizer.Dispose();
        gradients.Dispose();
    }

    /// <param name="lossSum">On the host; null on ranks that do not report.</param>
    private StepMetrics Metrics(GlobalBatch batch, Tensor? lossSum, OptimizerStepResult update) =>
        (lossSum is null ? new StepMetrics(0, 0, update) : new StepMetrics(lossSum.item<double>(), targetWeight, update)) with
        {
            LoadBalancingLoss = model.Options.Moe.HasBalanceLoss ? MeanOverLayers(routing => routing.BalanceLoss, batch) : null,
            ZLoss = model.Options.Moe.ZLossCoeff > 0 ? MeanOverLayers(routing => routing.ZLoss, batch) : null,
        };

    /// <summary>
    /// Mean over all layers with experts and all micro-batches, those of other stages and replicas too. Ranks that share a micro-batch hold shares of
    /// its losses, and one of them counts it.
    /// </summary>
    private double? MeanOverLayers(Func<RoutingStatistics, Tensor> select, GlobalBatch batch)
    {
        var (sum, count) = (0.0, 0);
        foreach (var chunk in model.Chunks)
        {
            if (chunk.Routing is not { } routing) continue;
            sum += select(routing).sum().item<double>();
            for (var layer = chunk.Stage.FirstLayer; layer < chunk.Stage.EndLayer; layer++)
                if (countsMicroBatches && chunk.Config.IsMoeLayer(layer)) count += batch.MicroBatches.Count;
        }
        var totals = HostValues.Sum(world, device, sum, count);
        return totals[1] == 0 ? null : totals[0] / totals[1];
    }

    private IReadOnlyList<PipelineAction> ScheduleOf(int numMicroBatches, bool isTraining)
    {
        if (schedules.TryGetValue((numMicroBatches, isTraining), out var known)) return known;
        return schedules[(numMicroBatches, isTraining)] = isTraining
            ? PipelineSchedules.Build(options.Schedule, shape, stageIndex, numMicroBatches)
            : ForwardOnly.Build(shape, stageIndex, numMicroBatches);
    }

    private ForwardContext[] MakeContexts(GlobalBatch batch, bool isTraining)
    {
        var contexts = new ForwardContext[batch.MicroBatches.Count];
        targetWeight = 0;
        for (var m = 0; m < contexts.Length; m++)
        {
            contexts[m] = MakeContext(batch, m, isTraining);
            targetWeight += WeightOf(contexts[m].Batch);
        }
        return contexts;
    }

    private ForwardContext MakeContext(GlobalBatch batch, int microBatch, bool isTraining)
    {
        var row = batch.MicroBatches[microBatch];
        var auxiliary = LossScaling.AuxiliaryFactor(batch.NumMicroBatchesGlobal, Optimizer.LossScale);
        var staged = batch.Staged?[microBatch] ?? new StagedMicroBatch(split.Take(row));
        return new ForwardContext(staged, device, batch.Index, isTraining, LossFactor(batch, row), auxiliary) { WholeRow = row };
    }

    /// <summary>Counts the targets of the whole row, so that the ranks that share it need no further division.</summary>
    private double LossFactor(GlobalBatch batch, MicroBatch row) => LossScaling.Factor(
        options.PerTokenLoss, batch.NumTargetTokensGlobal, WeightOf(row), batch.NumMicroBatchesGlobal, Optimizer.LossScale);

    private StepGraph CreateGraph()
    {
        if (device.type != TorchSharp.DeviceType.CUDA) throw new ConfigException("GRAPH002", "cuda_graph = true needs a GPU, and this rank computes on the CPU; leave cuda_graph out.");
        if (world.Size > 1) throw new ConfigException("GRAPH002", $"cuda_graph = true records the work of one rank without communication, and the job has {world.Size} ranks; leave cuda_graph out.");
        if (model.Config.VocabSize % 8 != 0)
            throw new ConfigException("GRAPH002", $"cuda_graph = true needs a vocabulary whose size is a multiple of 8 (for the kernel of the loss), and this model has {model.Config.VocabSize} tokens; leave cuda_graph out.");
        return new StepGraph(device.index);
    }

    // Shards are contiguous stretches of the global batch, so that a data-parallel rank holds whole shards (DESIGN D12).
    private void SelectLogicalShard(int microBatch)
    {
        if (numLocalShards <= 1) return;
        var index = (long)current.FirstMicroBatchIndex + microBatch;
        gradients.SelectShard((int)(index * options.NumLogicalShards / current.NumMicroBatchesGlobal) - firstShard);
    }

    private static double WeightOf(MicroBatch batch) => batch.LossWeights is null ? batch.NumTargetTokens : batch.LossWeights.Sum(weight => (double)weight);
}
