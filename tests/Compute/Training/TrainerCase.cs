using Megatron.Compute.Configuration;
using Megatron.Compute.Data;
using Megatron.Compute.Distributed;
using Megatron.Compute.Models;
using Megatron.Compute.Ops;
using Megatron.Compute.Optimizers;
using Megatron.Compute.PipelineParallel;
using Megatron.Compute.Training;
using Megatron.Compute.Transformer;
using Megatron.Testing;
using static TorchSharp.torch;

namespace Megatron.Compute.Tests.Training;

/// <summary>A small model with its trainer in one layout, ranks being threads; rows of random tokens, the same in every layout.</summary>
public sealed record TrainerCase
{
    /// <summary>Micro-batches of a global batch over all replicas.</summary>
    public const int NumMicroBatches = 4;

    public const int RowTokens = 16;

    public int Ranks { get; init; } = 1;

    public int Tensor { get; init; } = 1;

    public bool SequenceParallel { get; init; }

    public int Pipeline { get; init; } = 1;

    public int Context { get; init; } = 1;

    public ContextExchange Exchange { get; init; } = ContextExchange.Ring;

    public int Expert { get; init; } = 1;

    public int Chunks { get; init; } = 1;

    public PipelineScheduleKind Schedule { get; init; } = PipelineScheduleKind.Auto;

    public ModelConfig Model { get; init; } = TestModels.Config with { NumLayers = 4, QkLayerNorm = true, TieWordEmbeddings = true, InitializerRange = 0.2 };

    /// <summary>Of weights and activations; fp16 under a constant loss scale.</summary>
    public ScalarType Dtype { get; init; } = ScalarType.Float32;

    /// <summary>Rows of one micro-batch differ in length; otherwise all have <see cref="RowTokens"/>.</summary>
    public bool VariableLengths { get; init; }

    public RecomputeOptions Recompute { get; init; } = RecomputeOptions.Off;

    public int TensorOverlapChunks { get; init; } = 1;

    public long BucketElements { get; init; } = FlatLayout.DefaultBucketElements;

    public OptimizerOptions Optimizer { get; init; } = new()
    {
        Kind = OptimizerKind.Adam, WeightDecay = 0.1, ClipGrad = 1.0, AdamBeta1 = 0.9, AdamBeta2 = 0.95, AdamEps = 1e-8, SgdMomentum = 0.9,
        UseDistributedOptimizer = false,
    };

    public int Replicas => Ranks / (Tensor * Pipeline * Context);

    /// <summary>Name for messages.</summary>
    public override string ToString() =>
        $"tp{Tensor}{(SequenceParallel ? "+sp" : "")} pp{Pipeline} vp{Chunks} cp{Context} ep{Expert} dp{Replicas}{(Optimizer.UseDistributedOptimizer ? " zero-1" : "")} {Schedule} {Recompute.Granularity}";

    /// <summary>Runs <paramref name="body"/> on every rank.</summary>
    public void Run(Action<TrainerRank> body, Action<StartedOperation>? onStart = null)
    {
        var world = new LoopbackWorld(TimeSpan.FromSeconds(60));
        RankThreads.Run(Ranks, rank =>
        {
            using var leaks = LeakCheck.Start();
            using var scope = NewDisposeScope();
            IProcessGroupFactory factory = onStart is null ? world : new ObservedWorld(world, onStart);
            using var parallel = ParallelState.Create(new ParallelDims(Ranks, Tensor, Pipeline, Context, Expert, null), rank, factory, SequenceParallel);
            var layouts = new PipelinePartition(Model.NumLayers, new PipelineShape(Pipeline, Chunks), null, null).LayoutsOf(parallel.PipelineParallel.Rank);
            var options = TestModels.Options(Dtype) with
            {
                Recompute = Recompute, TensorOverlapChunks = TensorOverlapChunks, Attention = TestModels.Auto with { ContextExchange = Exchange },
            };
            using var model = new ModelChunks(Model, options, parallel, layouts);
            ModelInitializer.Initialize(model.Parameters, Model, seed: 7);
            using var trainer = new Trainer(model, parallel, CPU, new TrainerOptions
            {
                PerTokenLoss = true, NumLogicalShards = 1, Optimizer = Optimizer, Schedule = Schedule, BucketElements = BucketElements,
                LossScaler = Dtype == ScalarType.Float16 ? new LossScalerOptions { LossScale = 256 } : null,
            });
            body(new TrainerRank(this, parallel, model, trainer));
        }, failure => world.Abort(failure.Message));
    }

    /// <summary>Steps, then the sum of losses of each over all ranks, the norms, and the final weights by Hugging Face name.</summary>
    public TrainerOutcome Train(int steps)
    {
        var outcomes = new TrainerOutcome[Ranks];
        Run(rank =>
        {
            var (losses, norms) = (new double[steps], new double[steps]);
            for (var step = 0; step < steps; step++)
            {
                var metrics = rank.Trainer.TrainStep(rank.Batch(step), 1e-2);
                losses[step] = HostValues.Sum(rank.Parallel.World, CPU, metrics.LossSum)[0];
                norms[step] = metrics.Optimizer.GradNorm;
            }
            outcomes[rank.Parallel.Rank] = new TrainerOutcome(losses, norms, rank.GatherWeights());
        });
        foreach (var outcome in outcomes) Assert.Equal(outcomes[0].GradNorms, outcome.GradNorms);
        return outcomes[0];
    }
}

/// <summary>What a training run of a <see cref="TrainerCase"/> showed.</summary>
public sealed record TrainerOutcome(double[] Losses, double[] GradNorms, IReadOnlyDictionary<string, float[]> Weights)
{
    /// <summary>Fails unless every bit is the same.</summary>
    public void AssertSameBits(TrainerOutcome other)
    {
        Assert.Equal(Losses, other.Losses);
        Assert.Equal(GradNorms, other.GradNorms);
        Assert.All(Weights, pair => Assert.Equal(pair.Value, other.Weights[pair.Key]));
    }

    /// <summary>Whether every bit is the same.</summary>
    public bool HasSameBits(TrainerOutcome other) => Losses.SequenceEqual(other.Losses) && GradNorms.SequenceEqual(other.GradNorms)
        && Weights.All(pair => pair.Value.SequenceEqual(other.Weights[pair.Key]));

    /// <summary>Fails unless losses, norms and weights agree to rounding.</summary>
    public void AssertClose(TrainerOutcome other, double tolerance, string what)
    {
        for (var step = 0; step < Losses.Length; step++)
        {
            Assert.True(Math.Abs(Losses[step] - other.Losses[step]) <= tolerance * Losses[step], $"{what}: loss {other.Losses[step]} for {Losses[step]} in step {step}");
            Assert.True(Math.Abs(GradNorms[step] - other.GradNorms[step]) <= 10 * tolerance * GradNorms[step], $"{what}: norm {other.GradNorms[step]} for {GradNorms[step]} in step {step}");
        }
        foreach (var (name, values) in Weights)
        {
            var difference = Math.Sqrt(values.Zip(other.Weights[name], (a, b) => Math.Pow(a - (double)b, 2)).Sum() / values.Sum(value => value * (double)value));
            Assert.True(difference <= 10 * tolerance, $"{what}: {name} differs by {difference}");
        }
    }
}

/// <summary>One rank of a <see cref="TrainerCase"/>.</summary>
public sealed record TrainerRank(TrainerCase Case, ParallelState Parallel, ModelChunks Model, Trainer Trainer)
{
    /// <summary>This rank's share of the global batch of a step.</summary>
    public GlobalBatch Batch(int step)
    {
        var all = Enumerable.Range(0, TrainerCase.NumMicroBatches).Select(index =>
        {
            var random = new Random(1000 * step + index);
            int[] lengths = Case.VariableLengths ? [8, 8 * random.Next(1, 4)] : [TrainerCase.RowTokens];
            return TestBatches.Random(random, Case.Model.VocabSize, lengths) with { };
        }).ToArray();
        var first = 0;
        for (var i = 0; i < all.Length; first += all[i++].NumTokens)
            all[i] = all[i] with { GlobalTokenIndex = [.. Enumerable.Range(first, all[i].NumTokens).Select(token => (long)token)] };
        var share = all.Length / Parallel.DataParallel.Size;
        return new GlobalBatch(step, all[(share * Parallel.DataParallel.Rank)..(share * (Parallel.DataParallel.Rank + 1))], all.Length,
            all.Sum(batch => batch.NumTargetTokens), all.Length, 0) { FirstMicroBatchIndex = share * Parallel.DataParallel.Rank };
    }

    /// <summary>Reads every weight of this rank, so that an overlapped gather has ended.</summary>
    public void GatherWeightsHere()
    {
        foreach (var parameter in Model.Parameters) Assert.False(parameter.Data.IsInvalid);
    }

    /// <summary>Whole weights by Hugging Face name; every rank calls it.</summary>
    public IReadOnlyDictionary<string, float[]> GatherWeights() => HfTensorCatalog.Of(Case.Model).ToDictionary(
        tensor => tensor.Name,
        tensor => Replicas.Gather(tensor.Name, tensor.Shape, Model.Parameters, parameter => parameter.Data, Parallel, CPU).data<float>().ToArray());
}
