using System.Reflection;

namespace Megatron.House.Tests;

/// <summary>The four programs' assemblies.</summary>
internal static class Assemblies
{
    public static Assembly Compute { get; } = Assembly.Load("Megatron.Compute");
    public static Assembly Grains { get; } = Assembly.Load("Megatron.Grains");
    public static Assembly Silo { get; } = Assembly.Load("Megatron.Silo");
    public static Assembly Client { get; } = Assembly.Load("megatron");
    public static IReadOnlyList<Assembly> All { get; } = [Compute, Grains, Silo, Client];
}
