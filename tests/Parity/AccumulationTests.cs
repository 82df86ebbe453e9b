using Megatron.Compute.Configuration;
using Megatron.Compute.Data;
using Megatron.Compute.Distributed;
using Megatron.Compute.Models;
using Megatron.Compute.Ops;
using Megatron.Compute.Training;
using Megatron.Testing;
using static TorchSharp.torch;

namespace Megatron.Parity.Tests;

/// <summary>
/// A global batch of 8 golden rows in 1, 2 and 4 micro-batches. Sums run in another order, so equality is up to rounding: loss 1e-6 and gradients
/// 1e-5 (relative L2) in the first step, loss 1e-5 and norm 1e-4 over 20 steps.
/// </summary>
public sealed class AccumulationTests
{
    private const int NumSteps = 20, RowsPerStep = 8;

    public static TheoryData<string, bool> Cases
    {
        get
        {
            var cases = new TheoryData<string, bool>();
            foreach (var model in new[] { "qwen2.5-dense", "qwen3-dense", "llama3.1-dense" })
                foreach (var perTokenLoss in new[] { true, false })
                    cases.Add(model, perTokenLoss);
            return cases;
        }
    }

    // Without the per-token loss each micro-batch is a mean of its own, so with other numbers of targets another split is another loss by
    // definition. Rows with equal numbers of targets make all splits agree, so that half runs on those.
    [Theory, MemberData(nameof(Cases))]
    public void Trajectory_PerTokenLossAndFixedBatch_DoesNotDependOnAccumulation(string name, bool perTokenLoss)
    {
        using var leaks = LeakCheck.Start();
        var whole = Train(name, microBatchSize: 8, perTokenLoss);
        foreach (var microBatchSize in new[] { 4, 2 })
        {
            var split = Train(name, microBatchSize, perTokenLoss);
            for (var step = 0; step < NumSteps; step++)
            {
                AssertClose(whole[step].Loss, split[step].Loss, step == 0 ? 1e-6 : 1e-5, $"loss of step {step + 1}, micro_batch_size {microBatchSize}");
                AssertClose(whole[step].Norm, split[step].Norm, 1e-4, $"norm of step {step + 1}, micro_batch_size {microBatchSize}");
            }
        }
    }

    // The oracle: the gradient of each row's summed cross-entropy by itself, added up by hand with the weights that the definition gives.
    [Theory, MemberData(nameof(Cases))]
    public void Gradients_AnyAccumulation_EqualTheHandWeightedSumOfRows(string name, bool perTokenLoss)
    {
        using var leaks = LeakCheck.Start();
        using var scope = NewDisposeScope();
        using var run = new Run(name, perTokenLoss, equalTargets: false);
        var rows = Enumerable.Range(0, RowsPerStep).Select(run.RowGradient).ToList();
        foreach (var microBatchSize in new[] { 8, 4, 2 })
        {
            var groups = rows.Chunk(microBatchSize).ToList();
            var expected = zeros_like(rows[0].Gradient);
            foreach (var group in groups)
            {
                double divisor = perTokenLoss ? rows.Sum(row => row.NumTargets) : group.Sum(row => row.NumTargets) * groups.Count;
                foreach (var row in group) expected.add_(row.Gradient / divisor);
            }
            var actual = run.TrainerGradient(microBatchSize);
            var error = (actual - expected).norm().item<double>() / expected.norm().item<double>();
            Assert.True(error <= 1e-5, $"micro_batch_size {microBatchSize}: relative L2 {error}");
        }
    }

    private static List<(double Loss, double Norm)> Train(string name, int microBatchSize, bool perTokenLoss)
    {
        using var run = new Run(name, perTokenLoss, equalTargets: !perTokenLoss);
        return run.Train(microBatchSize);
    }

    private static void AssertClose(double expected, double actual, double tolerance, string what) =>
        Assert.True(Math.Abs(expected - actual) <= tolerance * Math.Abs(expected), $"{what}: {expected} and {actual}");

    /// <summary>A golden model on one rank with its trainer and the rows of the trajectory.</summary>
    private sealed class Run : IDisposable
    {
        private readonly GoldenFile golden;
        private readonly ModelChunks model;
        private readonly Trainer trainer;
        private readonly ParallelState parallel = ParallelState.SingleRank();
        private readonly TrainingConfig config;
        private readonly long[] ids;
        private readonly long[] labels;
        private readonly int length;

        public Run(string name, bool perTokenLoss, bool equalTargets)
        {
            golden = GoldenFile.Open(Repository.Asset("golden", name));
            config = new TrainingConfig { TorchDtype = "float32", Lr = 2e-3, MinLr = 2e-4, LrWarmupIters = 4, CalculatePerTokenLoss = perTokenLoss, GlobalBatchSize = RowsPerStep };
            var modelConfig = HfConfigReader.ReadFolder(golden.Folder).Model;
            model = new ModelChunks(modelConfig, RunSettings.Model(config, CPU), parallel, [StageLayout.Whole(modelConfig)]);
            ModelState.LoadWeights(model, golden.Folder, allowRandom: false, seed: 1);
            trainer = new Trainer(model, parallel, CPU, RunSettings.Trainer(config));
            (ids, var shape) = golden.ReadIds("steps.input_ids");
            (labels, _) = golden.ReadIds("steps.labels");
            length = (int)shape[2];
            if (equalTargets) labels = [.. ids.Select((id, i) => i % length < length / 2 ? MicroBatch.IgnoreIndex : id)];
        }

        public List<(double Loss, double Norm)> Train(int microBatchSize)
        {
            var (source, schedule) = (Source(microBatchSize), RunSettings.LearningRate(config, NumSteps));
            var steps = new List<(double, double)>();
            for (var step = 0; step < NumSteps; step++)
            {
                var metrics = trainer.TrainStep(source.Get(step), schedule.At(step + 1));
                steps.Add((metrics.LossSum / metrics.TokenCount, metrics.Optimizer.GradNorm));
            }
            return steps;
        }

        /// <summary>The flat fp64 gradient of the first global batch as the trainer accumulates it.</summary>
        public Tensor TrainerGradient(int microBatchSize)
        {
            trainer.AccumulateGradients(Source(microBatchSize).Get(0));
            return FlatGradient();
        }

        /// <summary>The flat fp64 gradient of one row's summed cross-entropy, and the number of its targets.</summary>
        public (Tensor Gradient, double NumTargets) RowGradient(int row)
        {
            foreach (var parameter in model.Parameters) parameter.MainGrad.zero_();
            var range = (row * length)..((row + 1) * length);
            var batch = TestBatches.FromUnshifted([ids[range]], [labels[range]]);
            using var context = new ForwardContext(batch, CPU, step: 0, isTraining: true, lossFactor: 1, auxiliaryLossFactor: 0);
            using var saved = new Saved(context);
            model.Chunks[0].ForwardStage(null, saved);
            model.Chunks[0].BackwardInput(null, saved);
            model.Chunks[0].BackwardWeight(saved);
            return (FlatGradient(), batch.NumTargetTokens);
        }

        public void Dispose()
        {
            trainer.Dispose();
            model.Dispose();
            golden.Dispose();
            parallel.Dispose();
        }

        private Tensor FlatGradient() => cat([.. model.Parameters.Select(parameter => parameter.MainGrad.reshape(-1).to_type(ScalarType.Float64))]);

        private PlannedBatchSource Source(int microBatchSize) =>
            ArrayBatchSource.Create(ids, labels, RowsPerStep, length, BatchLayout.SingleRankUnpadded(microBatchSize));
    }
}
