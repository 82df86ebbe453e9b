using System.Numerics;
using Megatron.Compute.Native;
using static TorchSharp.torch;

namespace Megatron.Compute.Optimizers;

/// <summary>
/// <see cref="AdamW"/> in host memory for optimizer state that was moved off the GPU (<c>--optimizer_cpu_offload</c>): one pass over gradient,
/// master and moments on all cores, because the pass is bound by memory and libtorch's operations would make a dozen.
/// </summary>
internal static unsafe class AdamWHost
{
    /// <summary>Elements that one core takes at a time: some hundred microseconds.</summary>
    private const long PieceLength = 1L << 16;

    /// <summary>One step, in place. All tensors are contiguous 1-D fp32 on the CPU, of one length.</summary>
    public static void Step(Tensor master, Tensor gradient, Tensor expAvg, Tensor expAvgSq, AdamWStep step, double gradientFactor)
    {
        var count = master.numel();
        var (p, g) = (Dispatcher.DataPointer(master), Dispatcher.DataPointer(gradient));
        var (m, v) = (Dispatcher.DataPointer(expAvg), Dispatcher.DataPointer(expAvgSq));
        Parallel.For(0, (count + PieceLength - 1) / PieceLength, piece =>
        {
            var begin = piece * PieceLength;
            var length = (int)Math.Min(PieceLength, count - begin);
            Update(Piece(p, begin, length), Piece(g, begin, length), Piece(m, begin, length), Piece(v, begin, length), step, (float)gradientFactor);
        });
        foreach (var tensor in (Tensor[])[master, gradient, expAvg, expAvgSq]) GC.KeepAlive(tensor);
    }

    private static Span<float> Piece(nint pointer, long begin, int length) => new((float*)pointer + begin, length);

    private static void Update(Span<float> master, Span<float> gradient, Span<float> expAvg, Span<float> expAvgSq, in AdamWStep step, float factor)
    {
        var (beta1, beta2) = ((float)step.Beta1, (float)step.Beta2);
        var (rest1, rest2) = ((float)(1 - step.Beta1), (float)(1 - step.Beta2));
        var (epsilon, decay) = ((float)step.Epsilon, (float)(step.LearningRate * step.WeightDecay));
        var stepSize = (float)(step.LearningRate / (1 - Math.Pow(step.Beta1, step.StepCount)));
        var inverseRoot = (float)(1 / Math.Sqrt(1 - Math.Pow(step.Beta2, step.StepCount)));
        var i = 0;
        for (; i <= master.Length - Vector<float>.Count; i += Vector<float>.Count)
        {
            var (p, g) = (new Vector<float>(master[i..]), new Vector<float>(gradient[i..]) * factor);
            var m = new Vector<float>(expAvg[i..]) * beta1 + g * rest1;
            var v = new Vector<float>(expAvgSq[i..]) * beta2 + g * g * rest2;
            var root = Vector.SquareRoot(v) * inverseRoot + new Vector<float>(epsilon);
            m.CopyTo(expAvg[i..]);
            v.CopyTo(expAvgSq[i..]);
            (p - p * decay - m * stepSize / root).CopyTo(master[i..]);
        }
        for (; i < master.Length; i++)
        {
            var g = gradient[i] * factor;
            expAvg[i] = expAvg[i] * beta1 + g * rest1;
            expAvgSq[i] = expAvgSq[i] * beta2 + g * g * rest2;
            master[i] = master[i] - master[i] * decay - expAvg[i] * stepSize / (MathF.Sqrt(expAvgSq[i]) * inverseRoot + epsilon);
        }
    }
}
