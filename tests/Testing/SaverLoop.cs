using System.Globalization;
using Megatron.Compute.Checkpointing;
using Megatron.Compute.Ops;
using static TorchSharp.torch;

namespace Megatron.Testing;

/// <summary>
/// Saves a small checkpoint again and again, as two ranks and their coordinator do: for processes that are killed, or whose disk fails, on the way.
/// </summary>
public static class SaverLoop
{
    private static readonly (string Name, long[] Shape)[] tensors = [("a.weight", [64, 48]), ("b.weight", [40, 32]), ("c.weight", [1000]), ("d.weight", [640, 512])];

    /// <summary>
    /// Reads an iteration from each line of the standard input, saves it and prints what came out. Each save runs on a thread of its own, so that a
    /// tracer which counts system calls by thread starts at zero.
    /// </summary>
    public static void Run(string root)
    {
        TorchTestSetup.EnsureLoaded();
        Console.WriteLine("ready");
        while (Console.ReadLine() is { } line)
        {
            var iteration = long.Parse(line, CultureInfo.InvariantCulture);
            var answer = "";
            var thread = new Thread(() => answer = Save(root, iteration));
            thread.Start();
            thread.Join();
            Console.WriteLine(answer);
        }
    }

    /// <summary>Two ranks' parts, the commit and retention, as a run does them.</summary>
    /// <returns><c>committed</c>, or <c>refused:</c> and the reason.</returns>
    public static string Save(string root, long iteration)
    {
        try
        {
            using var scope = NewDisposeScope();
            var store = new CheckpointStore(root, TimeProvider.System);
            var saveId = $"{iteration}-{Guid.NewGuid():N}"; // a run names a save once; here the same one is tried again and again
            store.CollectGarbage(attempt: 2);
            var folder = store.BeginSave(attempt: 1, saveId, 1 << 20);
            var parts = Enumerable.Range(0, 2).Select(rank => CheckpointWriter.WriteRank(folder, rank, Content(rank, iteration))).ToList();
            store.Commit(saveId, Facts(iteration), parts);
            store.Prune(2, CheckpointVerification.Sizes);
            return "committed";
        }
        catch (Exception exception) when (exception is IOException or UnauthorizedAccessException)
        {
            return "refused: " + exception.Message.ReplaceLineEndings(" ");
        }
    }

    /// <summary>The tensor of a checkpoint whose values are not those that were saved; null when all are.</summary>
    public static string? FindDifference(StoredCheckpoint checkpoint)
    {
        using var scope = NewDisposeScope();
        using var reader = new CheckpointReader(checkpoint);
        var iteration = checkpoint.Manifest.Run.Trainer.Iteration;
        for (var index = 0; index < tensors.Length; index++)
        {
            var (name, shape) = tensors[index];
            var expected = Values(index, iteration);
            var slice = new StateSlice(TensorBlock.Whole(name, shape), StateKind.Master, 0, expected.numel(), zeros(expected.numel()));
            reader.LoadState([slice]);
            var weight = zeros(expected.numel(), dtype: bfloat16);
            reader.LoadWeights([new WeightBlock(TensorBlock.Whole(name, shape), weight)]);
            if (!slice.Values.Equals(expected) || !weight.Equals(expected.to_type(bfloat16))) return $"{name} of iteration {iteration}";
        }
        return null;
    }

    private static Tensor Values(int index, long iteration)
    {
        var count = tensors[index].Shape.Aggregate(1L, (product, extent) => product * extent);
        return arange(count, dtype: float32) * 0.001f + iteration + 100f * index;
    }

    /// <summary>Rank 0 has the first rows of each tensor, rank 1 the others: both write to the same weight files.</summary>
    private static RankContent Content(int rank, long iteration)
    {
        var (weights, state) = (new List<WeightBlock>(), new List<StateSlice>());
        for (var index = 0; index < tensors.Length; index++)
        {
            var (name, shape) = tensors[index];
            long first = rank == 0 ? 0 : shape[0] / 3, last = rank == 0 ? shape[0] / 3 : shape[0], row = shape.Skip(1).Aggregate(1L, (product, extent) => product * extent);
            var block = new TensorBlock(name, shape, [first, .. shape.Skip(1).Select(_ => 0L)], [last - first, .. shape.Skip(1)], 0);
            var values = Values(index, iteration).narrow(0, first * row, (last - first) * row);
            weights.Add(new WeightBlock(block, values));
            foreach (var kind in new[] { StateKind.Master, StateKind.ExpAvg }) state.Add(new StateSlice(block, kind, 0, block.NumElements, values));
        }
        return new RankContent
        {
            ModelPlan = HfShardPlan.Make([.. tensors.Select(tensor => new SafetensorsSpec(tensor.Name, SafetensorsDType.BF16, tensor.Shape))], 7000),
            Weights = weights,
            State = state,
            SideFiles = rank == 0 ? new HfSideFiles { Config = "{}"u8.ToArray(), Args = "{}"u8.ToArray(), TokenizerFolder = Repository.Asset("tokenizers", "tiny") } : null,
        };
    }

    private static RunFacts Facts(long iteration) => new()
    {
        JobId = "faults",
        Attempt = 1,
        ModelConfig = new Dictionary<string, string>(),
        TokenizerHash = null,
        Layout = CheckpointLayout.SingleRank with { DataParallel = 2 },
        GlobalBatchSize = 1,
        MicroBatchSize = 1,
        Optimizer = new Dictionary<string, string>(),
        Schedule = new Dictionary<string, string>(),
        Trainer = new TrainerState
        {
            Iteration = iteration, ConsumedSamples = iteration, OptimizerSteps = iteration, SkippedIterations = 0, NanIterations = 0, LossScaler = null, Seed = 1,
            Data = new DataCursor(iteration, 0),
        },
    };
}
