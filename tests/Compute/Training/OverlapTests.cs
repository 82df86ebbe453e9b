using System.Collections.Concurrent;
using Megatron.Compute.Optimizers;
using Megatron.Compute.PipelineParallel;
using static TorchSharp.torch;

namespace Megatron.Compute.Tests.Training;

/// <summary>Overlapped reduction of gradients and gathering of weights: when they start, and that no bit depends on it.</summary>
public sealed class OverlapTests
{
    private const int Steps = 3;

    private static readonly OptimizerOptions plain = new TrainerCase().Optimizer;

    /// <summary>Layouts × optimizers; buckets of a layer or so.</summary>
    public static TheoryData<int, int, int, int, bool> Layouts => new()
    {
        { 2, 1, 1, 1, true }, { 2, 1, 1, 1, false }, { 4, 1, 1, 1, true }, { 4, 2, 1, 1, true }, { 4, 1, 2, 1, true }, { 4, 1, 2, 2, true }, { 4, 1, 2, 1, false },
        { 8, 2, 2, 1, true },
    };

    [Theory, MemberData(nameof(Layouts))]
    public void Train_OverlapOnAndOff_HasTheSameBits(int ranks, int tensor, int pipeline, int chunks, bool isSharded)
    {
        var without = new TrainerCase
        {
            Ranks = ranks, Tensor = tensor, SequenceParallel = tensor > 1, Pipeline = pipeline, Chunks = chunks, BucketElements = 3_000,
            Optimizer = plain with { UseDistributedOptimizer = isSharded },
        };
        var with = without with { Optimizer = without.Optimizer with { OverlapGradReduce = true, OverlapParamGather = isSharded } };
        var expected = without.Train(Steps);
        expected.AssertSameBits(with.Train(Steps));
        new TrainerCase().Train(Steps).AssertClose(expected, 1e-5, without.ToString());
    }

    /// <summary>Weights and activations in 16 bits, gradients on their way in fp32 or in bf16: sums over ranks keep their order, so the bits stay.</summary>
    [Theory]
    [InlineData(ScalarType.BFloat16, false, true)]
    [InlineData(ScalarType.BFloat16, true, true)]
    [InlineData(ScalarType.BFloat16, true, false)]
    [InlineData(ScalarType.Float16, false, true)]
    [InlineData(ScalarType.Float16, true, true)]
    public void Train_OverlapOnAndOffIn16Bits_HasTheSameBits(ScalarType dtype, bool reducesInBf16, bool isSharded)
    {
        foreach (var (ranks, tensor, pipeline) in (ReadOnlySpan<(int, int, int)>)[(4, 1, 1), (4, 2, 1), (4, 1, 2)])
        {
            var without = new TrainerCase
            {
                Ranks = ranks, Tensor = tensor, SequenceParallel = tensor > 1, Pipeline = pipeline, BucketElements = 3_000, Dtype = dtype,
                Optimizer = plain with { UseDistributedOptimizer = isSharded, ReduceIn16Bits = reducesInBf16 ? ScalarType.BFloat16 : null },
            };
            var with = without with { Optimizer = without.Optimizer with { OverlapGradReduce = true, OverlapParamGather = isSharded } };
            without.Train(Steps).AssertSameBits(with.Train(Steps));
        }
    }

    /// <summary>Products in chunks beside the collectives, and all other overlaps: in 16 bits as near to one rank in fp32 as without.</summary>
    [Theory]
    [InlineData(ScalarType.BFloat16, 1)]
    [InlineData(ScalarType.BFloat16, 3)]
    [InlineData(ScalarType.Float16, 1)]
    [InlineData(ScalarType.Float16, 3)]
    public void Train_TensorOverlapIn16Bits_StaysNearOneRankInFp32(ScalarType dtype, int chunks)
    {
        var expected = new TrainerCase().Train(steps: 1);
        var actual = new TrainerCase
        {
            Ranks = 4, Tensor = 2, SequenceParallel = true, TensorOverlapChunks = chunks, BucketElements = 3_000, Dtype = dtype,
            Optimizer = plain with { UseDistributedOptimizer = true, OverlapGradReduce = true, OverlapParamGather = true },
        }.Train(steps: 1);
        var bound = Math.Pow(2, -8) * Math.Sqrt(2); // two ranks add up each activation
        Assert.InRange(Math.Abs(actual.Losses[0] / expected.Losses[0] - 1), 0, bound);
        Assert.InRange(Math.Abs(actual.GradNorms[0] / expected.GradNorms[0] - 1), 0, bound);
    }

    [Theory]
    [InlineData(PipelineScheduleKind.ZeroBubble)]
    [InlineData(PipelineScheduleKind.GPipe)]
    public void Train_OtherSchedules_HaveTheBitsOfOneForwardOneBackward(PipelineScheduleKind schedule)
    {
        var layout = new TrainerCase
        {
            Ranks = 4, Pipeline = 2, BucketElements = 3_000,
            Optimizer = plain with { UseDistributedOptimizer = true, OverlapGradReduce = true, OverlapParamGather = true },
        };
        layout.Train(Steps).AssertSameBits((layout with { Schedule = schedule }).Train(Steps));
    }

    [Theory]
    [InlineData(true, "reduce_scatter")]
    [InlineData(false, "all_reduce")]
    public void AccumulateGradients_Overlap_StartsABucketWhenItsLastGradientLands(bool isSharded, string operation)
    {
        var emptyEmbeddings = new ConcurrentBag<bool>();
        var ranks = new ConcurrentDictionary<int, TrainerRank>();
        var overlapped = new TrainerCase
        {
            Ranks = 2, BucketElements = 3_000, Optimizer = plain with { UseDistributedOptimizer = isSharded, OverlapGradReduce = true },
            Model = new TrainerCase().Model with { TieWordEmbeddings = false },
        };
        overlapped.Run(rank =>
        {
            ranks[rank.Parallel.Rank] = rank;
            var batch = rank.Batch(0);
            rank.Trainer.AccumulateGradients(batch with { MicroBatches = [batch.MicroBatches[0]] });
            // All of them, before anybody asked for the reduction.
            Assert.True(rank.Parallel.DataContextParallel.Volume.BytesByOperation[operation] > 0);
            rank.Trainer.Optimizer.ReduceGradients();
        }, started =>
        {
            if (started.Operation != operation || !ranks.TryGetValue(started.GlobalRank, out var rank)) return;
            using var scope = NewDisposeScope();
            emptyEmbeddings.Add(rank.Model.Parameters[0].MainGrad.abs().max().item<float>() == 0);
        });
        // The embedding's gradient comes last: all buckets but its own were under way before it.
        Assert.True(emptyEmbeddings.Count(isEmpty => isEmpty) >= 2 * 3, $"{emptyEmbeddings.Count(isEmpty => isEmpty)} of {emptyEmbeddings.Count}");
        Assert.Equal(2, emptyEmbeddings.Count(isEmpty => !isEmpty));
    }

    [Fact]
    public void AccumulateGradients_NoOverlap_ReducesNothing() => new TrainerCase { Ranks = 2 }.Run(rank =>
    {
        rank.Trainer.AccumulateGradients(rank.Batch(0));
        Assert.Empty(rank.Parallel.DataContextParallel.Volume.BytesByOperation);
        rank.Trainer.Optimizer.ReduceGradients();
    });

    [Fact]
    public void Step_OverlappedGather_ReturnsBeforeAPeerStartsItAndTheReadWaits()
    {
        using var hasReturned = new ManualResetEventSlim();
        var layout = new TrainerCase
        {
            Ranks = 2, BucketElements = 3_000, Optimizer = plain with { UseDistributedOptimizer = true, OverlapGradReduce = true, OverlapParamGather = true },
        };
        var sums = new float[2];
        layout.Run(rank =>
        {
            rank.Trainer.TrainStep(rank.Batch(0), 1e-2);
            if (rank.Parallel.Rank == 0) hasReturned.Set();
            sums[rank.Parallel.Rank] = rank.Model.Parameters[0].Data.sum().item<float>();
        }, started =>
        {
            if (started is { GlobalRank: 1, Operation: "all_gather" }) Assert.True(hasReturned.Wait(TimeSpan.FromSeconds(30)));
        });
        Assert.Equal(sums[0], sums[1]);
    }

    [Fact]
    public void Train_ReductionInBf16_IsNearFp32AndHalvesTheVolume()
    {
        var wide = new TrainerCase { Ranks = 2, BucketElements = 3_000, Optimizer = plain with { UseDistributedOptimizer = true } };
        var narrow = wide with { Optimizer = wide.Optimizer with { ReduceIn16Bits = ScalarType.BFloat16 } };
        wide.Train(Steps).AssertClose(narrow.Train(Steps), 2e-3, "bf16 reduction");
        Assert.Equal(Volume(wide), 2 * Volume(narrow));

        static long Volume(TrainerCase layout)
        {
            var volume = 0L;
            layout.Run(rank =>
            {
                rank.Trainer.TrainStep(rank.Batch(0), 1e-2);
                if (rank.Parallel.Rank == 0) volume = rank.Parallel.DataContextParallel.Volume.BytesByOperation["reduce_scatter"];
            });
            return volume;
        }
    }
}
