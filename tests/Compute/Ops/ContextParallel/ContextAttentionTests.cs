using System.Collections.Concurrent;
using Megatron.Compute.Data;
using Megatron.Compute.Distributed;
using Megatron.Compute.Ops;
using Megatron.Compute.Ops.ContextParallel;
using Megatron.Testing;
using static TorchSharp.torch;

namespace Megatron.Compute.Tests.Ops.ContextParallel;

/// <summary>
/// Ring and all-to-all attention on 2 to 4 ranks against attention of the whole row on one: output and the gradients of q, k and v. In
/// double precision equal up to the order of sums (1e-12), in fp32 1e-5, in bf16 2^-6 (each kernel rounds once more).
/// </summary>
public sealed class ContextAttentionTests(ITestOutputHelper output)
{
    private const long Seed = 20;
    private const long Step = 3;

    /// <summary>Form, ranks, query heads, key/value heads, dropout, backend, dtype.</summary>
    public static TheoryData<string, int, int, int, double, AttentionBackend, ScalarType> Cases => new()
    {
        { "ring", 2, 4, 4, 0.0, AttentionBackend.Unfused, ScalarType.Float64 },
        { "ring", 2, 4, 2, 0.0, AttentionBackend.Auto, ScalarType.Float64 },
        { "ring", 3, 6, 2, 0.0, AttentionBackend.Unfused, ScalarType.Float64 },
        { "ring", 4, 4, 1, 0.0, AttentionBackend.Auto, ScalarType.Float64 },
        { "ring", 4, 4, 2, 0.3, AttentionBackend.Auto, ScalarType.Float64 },
        { "ring", 3, 4, 2, 0.0, AttentionBackend.Flash, ScalarType.Float32 },
        { "ring", 4, 8, 2, 0.0, AttentionBackend.Unfused, ScalarType.Float32 },
        { "ring", 2, 4, 2, 0.0, AttentionBackend.Flash, ScalarType.BFloat16 },
        { "ring", 2, 4, 2, 0.0, AttentionBackend.Unfused, ScalarType.BFloat16 },
        { "a2a", 2, 4, 2, 0.0, AttentionBackend.Unfused, ScalarType.Float64 },
        { "a2a", 2, 8, 4, 0.3, AttentionBackend.Auto, ScalarType.Float64 },
        { "a2a", 4, 8, 4, 0.0, AttentionBackend.Auto, ScalarType.Float64 },
        { "a2a", 3, 6, 3, 0.0, AttentionBackend.Flash, ScalarType.Float32 },
    };

    [Theory, MemberData(nameof(Cases))]
    public void Attention_SplitOverRanks_EqualsOneRank(
        string form, int numRanks, int heads, int groups, double dropout, AttentionBackend backend, ScalarType dtype)
    {
        var seed = Random.Shared.Next();
        output.WriteLine($"seed {seed}");
        var layout = new Layout(form, new AttentionShape(heads, groups, 8, FirstHead: 2, LayerIndex: 1), TestModels.Unfused with { Backend = backend }, dropout);
        using var row = new Row(PackedRow(new Random(seed), numRanks), layout.Shape, dtype, seed);
        var expected = RunWhole(layout, row);
        var plain = RunRanks(layout, row, numRanks, recompute: false);
        var recomputed = RunRanks(layout, row, numRanks, recompute: true);

        var tolerance = dtype switch { ScalarType.Float64 => 1e-12, ScalarType.Float32 => 1e-5, _ => 1.0 / 64 };
        foreach (var (name, values) in expected)
        {
            AssertClose(name, values, plain.Values[name], tolerance);
            Assert.Equal(plain.Values[name], recomputed.Values[name]); // the same bits, in a second run at that
        }
    }

    /// <summary>Hops beside the kernels, or each at its end before the next kernel: the same bits, and in 16 bits near one rank in fp32.</summary>
    [Theory]
    [InlineData(2, AttentionBackend.Unfused, ScalarType.BFloat16)]
    [InlineData(3, AttentionBackend.Unfused, ScalarType.BFloat16)]
    [InlineData(4, AttentionBackend.Flash, ScalarType.BFloat16)]
    [InlineData(2, AttentionBackend.Unfused, ScalarType.Float16)]
    [InlineData(4, AttentionBackend.Unfused, ScalarType.Float16)]
    public void RingAttention_In16Bits_HasTheBitsOfOneHopAtATimeAndStaysNearFp32(int numRanks, AttentionBackend backend, ScalarType dtype)
    {
        var layout = new Layout("ring", new AttentionShape(4, 2, 8, FirstHead: 2, LayerIndex: 1), TestModels.Unfused with { Backend = backend }, 0);
        using var row = new Row(PackedRow(new Random(8), numRanks), layout.Shape, dtype, seed: 8);
        using var wide = row.To(ScalarType.Float32);
        var expected = RunWhole(layout with { Options = TestModels.Unfused }, wide);
        var overlapped = RunRanks(layout, row, numRanks, recompute: false);
        var oneAtATime = RunRanks(layout, row, numRanks, recompute: false, OneHopAtATime);
        var bound = Math.Pow(2, -8) * Math.Sqrt(numRanks); // blocks of keys that are added up
        foreach (var (name, values) in expected)
        {
            Assert.Equal(oneAtATime.Values[name], overlapped.Values[name]);
            AssertClose(name, values, overlapped.Values[name], bound);
        }
    }

    [Theory]
    [InlineData(2)]
    [InlineData(4)]
    public void RingAttention_OneLayer_SendsWhatTheFormulaSays(int numRanks)
    {
        var layout = new Layout("ring", new AttentionShape(4, 2, 8, 0, 0), TestModels.Auto, 0);
        using var row = new Row(PackedRow(new Random(5), numRanks), layout.Shape, ScalarType.Float32, seed: 5);
        long tokens = row.Batch.NumTokens / numRanks, bytesOfKeysAndValues = 2 * tokens * 2 * 8 * sizeof(float);
        foreach (var (forward, backward) in RunRanks(layout, row, numRanks, recompute: false).Volumes)
        {
            Assert.Equal(new Dictionary<string, long> { ["send"] = (numRanks - 1) * bytesOfKeysAndValues }, forward);
            Assert.Equal(new Dictionary<string, long> { ["send"] = (numRanks - 1) * 2 * bytesOfKeysAndValues }, backward);
        }
    }

    [Theory]
    [InlineData(2)]
    [InlineData(4)]
    public void UlyssesAttention_OneLayer_SendsWhatTheFormulaSays(int numRanks)
    {
        var layout = new Layout("a2a", new AttentionShape(8, 4, 8, 0, 0), TestModels.Auto, 0);
        using var row = new Row(PackedRow(new Random(5), numRanks), layout.Shape, ScalarType.Float32, seed: 5);
        long tokens = row.Batch.NumTokens / numRanks, bytes = tokens * (2 * 8 + 2 * 4) * 8 * sizeof(float);
        foreach (var (forward, backward) in RunRanks(layout, row, numRanks, recompute: false).Volumes)
        {
            Assert.Equal(new Dictionary<string, long> { ["all_to_all"] = (numRanks - 1) * bytes / numRanks }, forward);
            Assert.Equal(forward, backward);
        }
    }

    // The ring keeps q, k, v, output and one number per token and head, as one rank does: cp ranks keep together what one keeps.
    [Theory]
    [InlineData("ring", false)]
    [InlineData("ring", true)]
    [InlineData("a2a", false)]
    [InlineData("a2a", true)]
    public void Attention_OnTwoRanks_KeepsHalfTheBytesOfOne(string form, bool recompute)
    {
        var layout = new Layout(form, new AttentionShape(4, 2, 8, 0, 0), TestModels.Auto, 0);
        var batch = TestBatches.Random(new Random(1), 50, [16, 16]);
        using var row = new Row(batch, layout.Shape, ScalarType.Float32, seed: 1);
        var whole = SavedBytesOfOneRank(layout, row, recompute);
        Assert.All(RunRanks(layout, row, 2, recompute).SavedBytes, bytes => Assert.Equal(whole / 2, bytes));
    }

    /// <summary>Segments of many lengths, some of one chunk of one token, and padding at the end of the row.</summary>
    private static MicroBatch PackedRow(Random random, int numRanks)
    {
        var unit = 2 * numRanks;
        int[] lengths = [3 * unit, unit, unit, 5 * unit, (1 + random.Next(4)) * unit, 2 * unit, 2 * unit];
        return TestBatches.Random(random, 50, lengths, numPaddingTokens: 2 * unit);
    }

    private static Dictionary<string, double[]> RunWhole(Layout layout, Row row)
    {
        using var leaks = LeakCheck.Start();
        using var scope = NewDisposeScope();
        using var context = new ForwardContext(row.Batch, CPU, Step, isTraining: true, 1, 1);
        using var saved = new Saved(context);
        var attention = new CoreAttention(layout.Shape, layout.Options, layout.Dropout, Seed, recompute: false);
        var result = attention.Forward(row.Query, row.Key, row.Value, saved);
        var gradients = attention.Backward(row.GradOutput, saved);
        Assert.Equal(0, saved.SizeBytes);
        return Values(result, gradients);
    }

    private static long SavedBytesOfOneRank(Layout layout, Row row, bool recompute)
    {
        using var scope = NewDisposeScope();
        using var context = new ForwardContext(row.Batch, CPU, Step, isTraining: true, 1, 1);
        using var saved = new Saved(context);
        new CoreAttention(layout.Shape, layout.Options, layout.Dropout, Seed, recompute).Forward(row.Query, row.Key, row.Value, saved);
        return saved.SizeBytes;
    }

    /// <summary>Runs all ranks and puts their tokens together in the order of the row.</summary>
    private static Result RunRanks(Layout layout, Row row, int numRanks, bool recompute, Func<LoopbackWorld, IProcessGroupFactory>? wrap = null)
    {
        var world = new LoopbackWorld(TimeSpan.FromSeconds(60));
        var factory = wrap?.Invoke(world) ?? world;
        var parts = new Dictionary<string, double[]>[numRanks];
        var (volumes, bytes) = (new (Dictionary<string, long>, Dictionary<string, long>)[numRanks], new long[numRanks]);
        RankThreads.Run(numRanks, rank =>
        {
            using var leaks = LeakCheck.Start();
            using var scope = NewDisposeScope();
            using var group = factory.Create("cp", rank, [.. Enumerable.Range(0, numRanks)]);
            var rows = new ContextSplit(rank, numRanks).RowsOf(row.Batch, rank);
            using var context = new ForwardContext(new ContextSplit(rank, numRanks).Take(row.Batch), CPU, Step, isTraining: true, 1, 1) { WholeRow = row.Batch };
            using var saved = new Saved(context);
            var attention = layout.Create(group, recompute);
            var own = row.Take(rows);
            var result = attention.Forward(own.Query, own.Key, own.Value, saved);
            bytes[rank] = saved.SizeBytes;
            var forward = new Dictionary<string, long>(group.Volume.BytesByOperation);
            group.Volume.Reset();
            var gradients = attention.Backward(own.GradOutput, saved);
            Assert.Equal(0, saved.SizeBytes);
            volumes[rank] = (forward, new Dictionary<string, long>(group.Volume.BytesByOperation));
            parts[rank] = Values(result, gradients);
        }, failure => world.Abort(failure.Message));
        return new Result(PutTogether(parts, row.Batch, numRanks), volumes, bytes);
    }

    /// <summary>A ring without overlap: a rank's send and receive have ended when it has started both.</summary>
    private static ObservedWorld OneHopAtATime(LoopbackWorld world)
    {
        var first = new ConcurrentDictionary<int, CollectiveWork>();
        return new ObservedWorld(world, onStarted: (operation, second) =>
        {
            if (first.TryAdd(operation.GlobalRank, second)) return;
            second.Wait();
            Assert.True(first.TryRemove(operation.GlobalRank, out var other));
            other.Wait();
        });
    }

    private static Dictionary<string, double[]> PutTogether(Dictionary<string, double[]>[] parts, MicroBatch whole, int numRanks) =>
        parts[0].Keys.ToDictionary(name => name, name =>
        {
            var width = parts[0][name].Length / (whole.NumTokens / numRanks);
            var values = new double[whole.NumTokens * width];
            for (var rank = 0; rank < numRanks; rank++)
            {
                var rows = new ContextSplit(rank, numRanks).RowsOf(whole, rank);
                for (var i = 0; i < rows.Length; i++) parts[rank][name].AsSpan(i * width, width).CopyTo(values.AsSpan(rows[i] * width, width));
            }
            return values;
        });

    private static Dictionary<string, double[]> Values(Tensor output, AttentionGradients gradients) => new()
    {
        ["output"] = Doubles(output), ["gradient of q"] = Doubles(gradients.Query), ["gradient of k"] = Doubles(gradients.Key),
        ["gradient of v"] = Doubles(gradients.Value),
    };

    private static double[] Doubles(Tensor x) => x.to_type(ScalarType.Float64).contiguous().data<double>().ToArray();

    private static void AssertClose(string what, double[] expected, double[] actual, double tolerance)
    {
        Assert.Equal(expected.Length, actual.Length);
        var difference = Math.Sqrt(expected.Zip(actual, (wanted, found) => (wanted - found) * (wanted - found)).Sum());
        var size = Math.Sqrt(expected.Sum(value => value * value));
        Assert.True(difference <= tolerance * size, $"{what}: relative L2 {difference / size:E2}");
    }

    /// <param name="Form">ring or a2a.</param>
    private sealed record Layout(string Form, AttentionShape Shape, AttentionOptions Options, double Dropout)
    {
        public ICoreAttention Create(ProcessGroup group, bool recompute)
        {
            if (Form == "ring") return new RingAttention(Shape, Options, Dropout, Seed, recompute, group);
            var heads = Shape.NumHeads / group.Size;
            var part = Shape with { NumHeads = heads, NumGroups = Shape.NumGroups / group.Size, FirstHead = Shape.FirstHead + group.Rank * heads };
            return new UlyssesAttention(part, new CoreAttention(part, Options, Dropout, Seed, recompute), group);
        }
    }

    private sealed record Result(
        Dictionary<string, double[]> Values, (Dictionary<string, long> Forward, Dictionary<string, long> Backward)[] Volumes, long[] SavedBytes);

    /// <summary>Inputs of one row, or of a rank's part of it; q, k and v are strided views of one tensor, as a layer gives them.</summary>
    private sealed class Row : IDisposable
    {
        private readonly AttentionShape shape;
        private readonly Tensor heads_TQD;

        public MicroBatch Batch { get; }

        public Tensor GradOutput { get; }

        public Tensor Query => heads_TQD.narrow(1, 0, shape.NumHeads);

        public Tensor Key => heads_TQD.narrow(1, shape.NumHeads, shape.NumGroups);

        public Tensor Value => heads_TQD.narrow(1, shape.NumHeads + shape.NumGroups, shape.NumGroups);

        public Row(MicroBatch batch, AttentionShape shape, ScalarType dtype, int seed)
        {
            using var scope = NewDisposeScope();
            using var generator = new Generator((ulong)seed);
            (Batch, this.shape) = (batch, shape);
            var numPadding = batch.NumPaddingTokens;
            heads_TQD = Random([batch.NumTokens, shape.NumHeads + 2 * shape.NumGroups, shape.HeadDim]);
            GradOutput = Random([batch.NumTokens, shape.NumHeads, shape.HeadDim]);
            GradOutput.narrow(0, batch.NumTokens - numPadding, numPadding).zero_(); // what padding gives is never used

            Tensor Random(long[] size) => randn(size, ScalarType.Float64, generator: generator).to_type(dtype).DetachFromDisposeScope();
        }

        private Row(MicroBatch batch, AttentionShape shape, Tensor heads, Tensor gradOutput) =>
            (Batch, this.shape, heads_TQD, GradOutput) = (batch, shape, heads, gradOutput);

        /// <summary>The same values in a wider dtype.</summary>
        public Row To(ScalarType wide)
        {
            using var scope = NewDisposeScope();
            return new Row(Batch, shape, heads_TQD.to_type(wide).DetachFromDisposeScope(), GradOutput.to_type(wide).DetachFromDisposeScope());
        }

        /// <summary>The tokens of one rank, in the scope that is open.</summary>
        public Row Take(int[] rows)
        {
            var index = tensor(Array.ConvertAll(rows, row => (long)row));
            return new Row(Batch, shape, heads_TQD.index_select(0, index), GradOutput.index_select(0, index));
        }

        public void Dispose()
        {
            heads_TQD.Dispose();
            GradOutput.Dispose();
        }
    }
}
