using Megatron.Compute.Distributed;
using Megatron.Compute.PipelineParallel;
using Megatron.Testing;
using static TorchSharp.torch;

namespace Megatron.Compute.Tests.PipelineParallel;

/// <summary>A toy model of linear layers, one per stage, with rows of a different length in every micro-batch.</summary>
public sealed class PipelineInterpreterTests
{
    private const int Hidden = 6;
    private static readonly int[] Lengths = [3, 5, 1, 8, 2];

    [Theory]
    [InlineData(2, 1)]
    [InlineData(2, 5)]
    [InlineData(4, 2)]
    [InlineData(4, 5)]
    public void OneForwardOneBackward_OnLoopback_MatchesNoPipeliningBitwise(int numStages, int numMicroBatches)
    {
        var expected = RunAlone(numStages, numMicroBatches);
        var losses = new double[numMicroBatches];
        var gradients = new float[numStages][];
        var world = new LoopbackWorld(TimeSpan.FromSeconds(30));
        RankThreads.Run(numStages, rank =>
        {
            using var leaks = LeakCheck.Start();
            using var group = world.Create("pp", rank, [.. Enumerable.Range(0, numStages)]);
            using var stage = new LinearStages([rank], isFirst: rank == 0, isLast: rank == numStages - 1, losses);
            var interpreter = new PipelineInterpreter(group, 1, float32, CPU);
            interpreter.Run(OneForwardOneBackward.Build(numStages, rank, numMicroBatches), stage);
            gradients[rank] = stage.ReadGradients()[0];
            Assert.Equal(0, stage.NumSaved);
            group.Barrier();
        }, failure => world.Abort(failure.Message));
        Assert.Equal(expected.Losses, losses);
        for (var i = 0; i < numStages; i++) Assert.Equal(expected.Gradients[i], gradients[i]);
    }

    [Fact]
    public void ForwardOnly_OnLoopback_GivesTheSameLosses()
    {
        var expected = RunAlone(3, 5);
        var losses = new double[5];
        var world = new LoopbackWorld(TimeSpan.FromSeconds(30));
        RankThreads.Run(3, rank =>
        {
            using var leaks = LeakCheck.Start();
            using var group = world.Create("pp", rank, [0, 1, 2]);
            using var stage = new LinearStages([rank], rank == 0, rank == 2, losses) { IsTraining = false };
            new PipelineInterpreter(group, 1, float32, CPU).Run(ForwardOnly.Build(new PipelineShape(3, 1), rank, 5), stage);
            group.Barrier();
        }, failure => world.Abort(failure.Message));
        Assert.Equal(expected.Losses, losses);
    }

    [Fact]
    public void Run_StageThrows_ReleasesThePeerAndFreesItsTensors()
    {
        var world = new LoopbackWorld(TimeSpan.FromSeconds(30));
        RankThreads.Run(2, rank =>
        {
            using var leaks = LeakCheck.Start();
            using var group = world.Create("pp", rank, [0, 1]);
            using var stage = new LinearStages([rank], rank == 0, rank == 1, new double[3]) { FailsAtMicroBatch = rank == 1 ? 1 : -1 };
            var run = () => new PipelineInterpreter(group, 1, float32, CPU).Run(OneForwardOneBackward.Build(2, rank, 3), stage);
            if (rank == 1) Assert.Equal("micro-batch 1 fails", Assert.Throws<InvalidOperationException>(run).Message);
            else Assert.Contains("micro-batch 1 fails", Assert.Throws<RankFaultException>(run).Message);
        });
    }

    [Fact]
    public void Run_ActionBeforeItsInput_SaysSo()
    {
        using var leaks = LeakCheck.Start();
        var world = new LoopbackWorld(TimeSpan.FromSeconds(1));
        using var group = world.Create("pp", 1, [0, 1]);
        using var stage = new LinearStages([1], false, true, new double[1]);
        var problem = Assert.Throws<InvalidOperationException>(
            () => new PipelineInterpreter(group, 1, float32, CPU).Run([new PipelineAction(PipelineActionKind.Forward, 0, 0)], stage));
        Assert.Contains("before what it needs", problem.Message);
    }

    private static (double[] Losses, float[][] Gradients) RunAlone(int numLayers, int numMicroBatches)
    {
        using var leaks = LeakCheck.Start();
        using var group = new SingleRankGroup("pp");
        var losses = new double[numMicroBatches];
        using var stage = new LinearStages([.. Enumerable.Range(0, numLayers)], true, true, losses);
        new PipelineInterpreter(group, 1, float32, CPU).Run(NoPipelining.Build(numMicroBatches), stage);
        Assert.Equal(0, stage.NumSaved);
        return (losses, stage.ReadGradients());
    }

    /// <summary>y = x·W per layer, loss = Σ y² / 2; explicit halves as in the real layers.</summary>
    private sealed class LinearStages : IPipelineStage, IDisposable
    {
        private readonly bool isFirst;
        private readonly bool isLast;
        private readonly double[] losses;
        private readonly Tensor[] weights;
        private readonly Tensor[] gradients;
        private readonly Dictionary<(int MicroBatch, int Layer), (Tensor Input, Tensor? GradOutput)> saved = [];
        private readonly Dictionary<int, Tensor> lastOutput = [];

        public bool IsTraining { get; init; } = true;

        public int FailsAtMicroBatch { get; init; } = -1;

        public int NumSaved => saved.Count + lastOutput.Count;

        public LinearStages(int[] layers, bool isFirst, bool isLast, double[] losses)
        {
            (this.isFirst, this.isLast, this.losses) = (isFirst, isLast, losses);
            weights = [.. layers.Select(layer => Make(Hidden, Hidden, 100 + layer))];
            gradients = [.. layers.Select(_ => zeros(Hidden, Hidden).DetachFromDisposeScope())];
        }

        public Tensor? Forward(int microBatch, int chunk, Tensor? input)
        {
            if (microBatch == FailsAtMicroBatch) throw new InvalidOperationException($"micro-batch {microBatch} fails");
            Assert.Equal(isFirst, input is null);
            using var tokens = isFirst ? Make(Lengths[microBatch], Hidden, microBatch) : null;
            var x = (input ?? tokens ?? throw new InvalidOperationException("no input")).alias();
            Assert.Equal(Lengths[microBatch], x.shape[0]);
            for (var layer = 0; layer < weights.Length; layer++)
            {
                if (IsTraining) saved[(microBatch, layer)] = (x.alias().DetachFromDisposeScope(), null);
                x = x.matmul(weights[layer]);
            }
            if (!isLast) return x;
            losses[microBatch] = x.square().sum().item<float>() / 2;
            if (IsTraining) lastOutput[microBatch] = x.alias().DetachFromDisposeScope();
            return null;
        }

        public Tensor? BackwardInput(int microBatch, int chunk, Tensor? gradOutput)
        {
            Assert.Equal(isLast, gradOutput is null);
            Tensor gradient;
            if (isLast)
            {
                lastOutput.Remove(microBatch, out var output);
                using (output) gradient = (output ?? throw new InvalidOperationException("no output")).alias();
            }
            else gradient = (gradOutput ?? throw new InvalidOperationException("no gradient")).alias();
            for (var layer = weights.Length - 1; layer >= 0; layer--)
            {
                saved[(microBatch, layer)] = saved[(microBatch, layer)] with { GradOutput = gradient.alias().DetachFromDisposeScope() };
                gradient = gradient.matmul(weights[layer].t());
            }
            return isFirst ? null : gradient;
        }

        public void BackwardWeight(int microBatch, int chunk)
        {
            for (var layer = 0; layer < weights.Length; layer++)
            {
                saved.Remove((microBatch, layer), out var entry);
                gradients[layer].add_(entry.Input.t().matmul(entry.GradOutput ?? throw new InvalidOperationException("no gradient")));
                entry.Input.Dispose();
                entry.GradOutput.Dispose();
            }
        }

        public float[][] ReadGradients() => [.. gradients.Select(gradient => gradient.data<float>().ToArray())];

        public void Dispose()
        {
            foreach (var tensor in weights.Concat(gradients).Concat(lastOutput.Values)) tensor.Dispose();
            foreach (var (input, gradOutput) in saved.Values)
            {
                input.Dispose();
                gradOutput?.Dispose();
            }
        }

        private static Tensor Make(int rows, int columns, int seed)
        {
            var random = new Random(seed);
            float[] values = [.. Enumerable.Range(0, rows * columns).Select(_ => (float)(random.NextDouble() - 0.5))];
            using var scope = NewDisposeScope();
            // A clone, because a tensor over a managed array starts at any address, and MKL's products differ in the last bit with the alignment.
            return tensor(values).view(rows, columns).clone().DetachFromDisposeScope();
        }
    }
}
