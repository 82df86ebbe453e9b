// Reads what compiled methods call and mention. A rule checked here has no false alarms from comments, strings or look-alike names, and it sees
// through var, aliases and async state machines.

using System.Reflection;
using System.Reflection.Emit;

namespace Megatron.House.Tests;

/// <summary>One member that a method's code names.</summary>
/// <param name="Method">The method whose code it is.</param>
/// <param name="Member">What it calls, reads or mentions: a method, field or type.</param>
internal sealed record Mention(MethodBase Method, MemberInfo Member)
{
    /// <summary>The type as written by the author: closures and state machines are nested in it.</summary>
    public Type Owner
    {
        get
        {
            var type = Method.DeclaringType!; // there are no global methods in C#
            while (type.DeclaringType is { } outer) type = outer;
            return type;
        }
    }
}

/// <summary>Walks the code of an assembly.</summary>
internal static class MethodScan
{
    private const BindingFlags Declared = BindingFlags.DeclaredOnly | BindingFlags.Public | BindingFlags.NonPublic | BindingFlags.Static | BindingFlags.Instance;

    private static readonly Dictionary<short, OpCode> opCodes = typeof(OpCodes).GetFields(BindingFlags.Public | BindingFlags.Static)
        .Select(field => (OpCode)field.GetValue(null)!).ToDictionary(code => code.Value); // static fields of a struct type are never null

    /// <summary>Types that people wrote; source generators' types (Orleans codecs and proxies) are left out.</summary>
    public static IEnumerable<Type> WrittenTypes(Assembly assembly) => assembly.GetTypes().Where(IsWritten);

    /// <summary>True for a type that people wrote.</summary>
    public static bool IsWritten(Type? type) => type?.Namespace is { } name && name.StartsWith("Megatron", StringComparison.Ordinal);

    /// <summary>Every member that the code of every method names.</summary>
    public static IEnumerable<Mention> Mentions(Assembly assembly) => WrittenTypes(assembly).SelectMany(type => Methods(type)).SelectMany(Mentions);

    /// <summary>Every type in the declarations of <paramref name="type"/>: base, interfaces, fields, parameters, results.</summary>
    public static IEnumerable<Type> DeclaredTypes(Type type)
    {
        var types = new List<Type?> { type.BaseType };
        types.AddRange(type.GetInterfaces());
        types.AddRange(type.GetFields(Declared).Select(field => field.FieldType));
        foreach (var method in Methods(type))
        {
            types.AddRange(method.GetParameters().Select(parameter => parameter.ParameterType));
            types.Add((method as MethodInfo)?.ReturnType);
        }
        return types.OfType<Type>().SelectMany(Parts).Distinct();
    }

    /// <summary>A type and the types it is made of: elements and generic arguments.</summary>
    public static IEnumerable<Type> Parts(Type type)
    {
        while (type.HasElementType && type.GetElementType() is { } element) type = element;
        if (type.IsGenericParameter) return [];
        return type.IsGenericType ? type.GetGenericArguments().SelectMany(Parts).Prepend(type) : [type];
    }

    private static IEnumerable<MethodBase> Methods(Type type) => type.GetMethods(Declared).Concat<MethodBase>(type.GetConstructors(Declared));

    private static IEnumerable<Mention> Mentions(MethodBase method)
    {
        if (method.GetMethodBody()?.GetILAsByteArray() is not { } code) yield break;
        var typeArguments = method.DeclaringType is { IsGenericType: true } type ? type.GetGenericArguments() : null;
        var methodArguments = method.IsGenericMethod ? method.GetGenericArguments() : null;
        for (var position = 0; position < code.Length;)
        {
            var value = code[position] == 0xFE ? unchecked((short)(0xFE00 | code[position + 1])) : code[position];
            var opCode = opCodes[value];
            position += opCode.Size;
            if (opCode.OperandType is OperandType.InlineMethod or OperandType.InlineField or OperandType.InlineType or OperandType.InlineTok)
            {
                if (method.Module.ResolveMember(BitConverter.ToInt32(code, position), typeArguments, methodArguments) is { } member) yield return new Mention(method, member);
            }
            position += OperandSize(opCode.OperandType, code, position);
        }
    }

    private static int OperandSize(OperandType type, byte[] code, int position) => type switch
    {
        OperandType.InlineNone => 0,
        OperandType.ShortInlineBrTarget or OperandType.ShortInlineI or OperandType.ShortInlineVar => 1,
        OperandType.InlineVar => 2,
        OperandType.InlineI8 or OperandType.InlineR => 8,
        OperandType.InlineSwitch => 4 + 4 * BitConverter.ToInt32(code, position),
        _ => 4,
    };
}
