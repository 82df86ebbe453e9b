using Megatron.Compute.Configuration;
using Megatron.Compute.Ops;

namespace Megatron.Compute.Tests.Ops;

/// <summary>Scaled rotary frequencies against values worked out from the published formulas in double precision.</summary>
public sealed class RotaryFrequenciesTests
{
    private static readonly RotaryConfig llama31 = new()
    {
        Base = 500_000, ScalingType = "llama3", Factor = 8, LowFreqFactor = 1, HighFreqFactor = 4, OriginalMaxPositionEmbeddings = 8192,
    };

    [Fact]
    public void Compute_Default_IsInversePowersOfTheBase()
    {
        var (frequencies, magnitude) = RotaryFrequencies.Compute(new RotaryConfig { Base = 10_000 }, 128, 4096);
        Assert.Equal(1, magnitude);
        for (var i = 0; i < 64; i++) Near(Math.Pow(10_000, -i / 64.0), frequencies[i]);
    }

    [Fact]
    public void Compute_Linear_DividesByTheFactor()
    {
        var (frequencies, _) = RotaryFrequencies.Compute(new RotaryConfig { Base = 10_000, ScalingType = "linear", Factor = 4 }, 64, 4096);
        for (var i = 0; i < 32; i++) Near(Math.Pow(10_000, -i / 32.0) / 4, frequencies[i]);
    }

    [Fact]
    public void Compute_Llama3_KeepsShortScalesLongBlendsBetween()
    {
        var (frequencies, _) = RotaryFrequencies.Compute(llama31, 128, 131072);
        var (kept, scaled, blended) = (0, 0, 0);
        for (var i = 0; i < 64; i++)
        {
            var plain = Math.Pow(500_000, -i / 64.0);
            var wavelength = 2 * Math.PI / plain;
            if (wavelength < 8192 / 4.0) { Near(plain, frequencies[i]); kept++; }
            else if (wavelength > 8192) { Near(plain / 8, frequencies[i]); scaled++; }
            else
            {
                var smooth = (8192 / wavelength - 1) / 3;
                Near((1 - smooth) * plain / 8 + smooth * plain, frequencies[i]);
                blended++;
            }
        }
        Assert.True(kept > 0 && scaled > 0 && blended > 0);
    }

    [Fact]
    public void Compute_Yarn_RampsBetweenTheCorrectionChannels()
    {
        var config = new RotaryConfig { Base = 1_000_000, ScalingType = "yarn", Factor = 4, OriginalMaxPositionEmbeddings = 32768 };
        var (frequencies, magnitude) = RotaryFrequencies.Compute(config, 128, 131072);
        Assert.Equal(0.1 * Math.Log(4) + 1, magnitude, 12);

        // Channel where the original context holds r rotations: 128·ln(32768 / (2πr)) / (2·ln(10^6)): 23.6 for r = 32, 39.6 for r = 1.
        for (var i = 0; i < 64; i++)
        {
            var plain = Math.Pow(1_000_000, -i / 64.0);
            var ramp = Math.Clamp((i - 23) / (40.0 - 23), 0, 1);
            Near(plain / 4 * ramp + plain * (1 - ramp), frequencies[i]);
        }
    }

    [Theory]
    [InlineData(1.5, null, null, 1.5)]
    [InlineData(null, 1.0, 1.0, 1.0)]
    [InlineData(null, 2.0, 1.0, (0.2 * 1.3862943611198906 + 1) / (0.1 * 1.3862943611198906 + 1))]
    public void Compute_YarnMagnitude_FollowsTheKeys(double? attentionFactor, double? mscale, double? mscaleAllDim, double expected)
    {
        var config = new RotaryConfig
        {
            Base = 10_000, ScalingType = "yarn", Factor = 4, OriginalMaxPositionEmbeddings = 4096, AttentionFactor = attentionFactor, MScale = mscale, MScaleAllDim = mscaleAllDim,
        };
        Assert.Equal(expected, RotaryFrequencies.Compute(config, 64, 16384).Magnitude, 1e-12);
    }

    private static void Near(double expected, float actual) => Assert.Equal(expected, actual, 2e-6 * expected);
}
